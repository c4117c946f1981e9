# SPDX-License-Identifier: Apache-2.0
"""``python -m memvirt``."""

from memvirt.cli.entry import main

if __name__ == "__main__":
    main()
