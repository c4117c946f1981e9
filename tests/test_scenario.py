# SPDX-License-Identifier: Apache-2.0
"""Scenario files: defaults, mistakes with line and key, the schema, the generated documents."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import jsonschema
import pytest

from memvirt.scenario.keys import shares_of
from memvirt.scenario.scenario import (
    ScenarioError,
    bundled_scenarios,
    find_scenario,
    load_scenario,
    parse_scenario,
)
from memvirt.scenario.schema import scenario_schema
from memvirt.vmkernel.options import Salting

DOCS = Path(__file__).parents[1] / "docs"
GOOD = '[machine]\nmemory = "64M"\n[[vm]]\nname = "a"\nmemory = "32M"\n'


def test_defaults_and_shares() -> None:
    scenario = parse_scenario(GOOD, "x")
    (vm,) = scenario.vm
    assert shares_of(vm) == 320
    assert scenario.machine.Mem.share_force_salting is Salting.GROUP_ELSE_VM
    assert scenario.machine.Mem.idle_tax == 75
    for text, shares in (('"low"', 160), ('"high"', 640), ("7", 7)):
        assert shares_of(parse_scenario(f"{GOOD}shares = {text}\n", "x").vm[0]) == shares


@pytest.mark.parametrize("style", ["[machine.Mem]\n{}\n", "machine.Mem"])
def test_knobs_in_either_style(style: str) -> None:
    if style == "machine.Mem":
        text = GOOD.replace("[[vm]]", 'Mem.MemZipCodec = "zstd"\n[[vm]]')
    else:
        text = GOOD + style.format('MemZipCodec = "zstd"')
    assert parse_scenario(text, "x").machine.Mem.mem_zip_codec == "zstd"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "shares = 0\n", '6: "vm.shares": should be "low", "normal", "high" or a number'),
        (GOOD + 'shares = "hgih"\n', '6: "vm.shares": should be "low"'),
        (GOOD + 'paging = "fast"\n', "6: \"vm.paging\": should be 'shadow' or 'nested'"),
        (GOOD + 'reservation = "48M"\n', '6: "vm.reservation": 48.0 MiB is more than memory'),
        (GOOD + 'limit = "8M"\nreservation = "9M"\n', "7: .*9.0 MiB is more than limit, 8.0"),
        (GOOD + "memry = 1\n", r'6: unknown key "vm.memry" \(did you mean "memory"\?\); known'),
        (GOOD + "start = -1\n", '6: "vm.start": should be greater than or equal to 0'),
        (GOOD + "[machine.Mem]\nIdleTax = 100\n", '7: "machine.Mem.IdleTax": should be less'),
        (GOOD + "[machine.Mem]\nIdelTax = 1\n", r'7: unknown .*did you mean "IdleTax"'),
        (GOOD + "[machine.Mem]\nShareForceSalting = 3\n", "7: .*should be 0, 1 or 2"),
        (GOOD + '[[vm]]\nname = "a"\nmemory = "1M"\n', '7: "vm.name": there is a VM a already'),
        (GOOD.replace('"32M"', '"32Q"'), '5: "vm.memory": size: "32Q" is no size'),
        (GOOD.replace('memory = "32M"\n', ""), '3: "vm.memory" is missing'),
        (GOOD.replace("[machine]", "[machine"), "line 1"),
        (
            GOOD + 'count = 2\n[[vm]]\nname = "a-2"\nmemory = "8M"\n',
            "8: .*there is a VM a-2 already",
        ),
        (GOOD + "start = 1e300\n", '6: "vm.start": should be less than or equal to 1000000000'),
        (GOOD + 'image = "\\u0000"\n', '6: "vm.image": should have no NUL character'),
        (GOOD + 'initrd = "a\\u0000"\n', '6: "vm.initrd": should have no NUL character'),
        (GOOD + 'append = "a\\u0000"\n', '6: "vm.append": should have no NUL character'),
        (GOOD.replace("[[vm]]", 'state_directory = "\\u0000"\n[[vm]]'), "3: .*no NUL character"),
        (GOOD.replace("[[vm]]", "scatter_seed = -1\n[[vm]]"), '3: "machine.scatter_seed": should'),
        (GOOD + "[remap]\nseed = -1\n", '7: "remap.seed": should be greater'),
        (GOOD.replace('"64M"', f'"{"9" * 400}T"'), '2: "machine.memory": .*more than any machine'),
        (GOOD.replace('"64M"', "9" * 400), '2: "machine.memory": .*more than any machine'),
        ("seed = " + "1" * 5000 + "\n" + GOOD, "limit"),
        (f"x = {'[' * 3000}{']' * 3000}\n{GOOD}", "nested too deeply"),
        (GOOD + "count = true\n", '6: "vm.count": should be a valid integer'),
        (GOOD + "shares = true\n", '6: "vm.shares": should be "low"'),
        (GOOD + "start = inf\n", '6: "vm.start": should be a finite number'),
        (GOOD.replace('"32M"', '["32M"]'), '5: "vm.memory": should be a number of bytes'),
        (GOOD.replace('"a"', r'"a\n"'), '4: "vm.name": should have no control characters'),
        (GOOD.replace('"a"', f'"{"a" * 101}"'), '4: "vm.name": .*at most 100 characters'),
        (GOOD.replace("[[vm]]", "[vm]"), r'3: "vm": .*each headed \[\[vm\]\]'),
        (
            'machine.memory = "1M"\nvm = [\n{name = "a", memory = "1M"},\n{name = "b"},\n]\n',
            '4: "vm.memory" is missing',
        ),
        (GOOD + '[ machine . "Mem" ]\nIdleTax = 100\n', '7: "machine.Mem.IdleTax"'),
        ('[machine]\nmemory = "64M"\nvm = []\n', '3: .*"machine.vm"|"vm" is missing'),
    ],
)
def test_a_mistake_is_one_line_with_the_place(text: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message) as caught:
        parse_scenario(text, "file.toml")
    assert str(caught.value).startswith("file.toml:")
    assert "\n" not in str(caught.value)


def test_unreadable_files_and_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"gone\.toml: cannot be read: No such file"):
        load_scenario(find_scenario(str(tmp_path / "gone.toml")))
    with pytest.raises(ScenarioError, match=r"no-such: no such file, and no bundled .*default"):
        find_scenario("no-such")


def test_bundled_scenarios_are_good_and_follow_the_schema() -> None:
    schema = scenario_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert "default" in bundled_scenarios()
    for name, meaning in bundled_scenarios().items():
        path = find_scenario(name)
        load_scenario(path)
        jsonschema.validate(tomllib.loads(path.read_text(encoding="utf-8")), schema)
        assert meaning
    bad = {"machine": {"memory": "64M", "Mem": {"IdleTax": 400}}, "vm": []}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, schema)


def test_the_default_scenario_overcommits_twofold() -> None:
    scenario = load_scenario(find_scenario("default"))
    configured = sum(vm.memory * vm.count for vm in scenario.vm)
    assert configured >= 2 * scenario.machine.memory


def test_generated_documents_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_docs", DOCS / "make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, text in module.documents().items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, f"run make docs: {name}"


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "bom.toml"
    text = '[machine]\r\nmemory = "64M"\r\n[[vm]]\r\nname = "a"\r\nmemory = "8M"\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_scenario(path).vm[0].name == "a"
