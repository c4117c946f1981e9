# SPDX-License-Identifier: Apache-2.0
"""The rules of the consistency checker (``vmm.check``), one module for each group of rules.

``violation`` says what a broken rule is; ``sources`` is the only module that knows where the VMM
keeps what is audited; each other module audits one structure. Rules are written over whole arrays
and bear any state of the guest, and any damage of the structures: nothing read is an index before
it has been compared with what there is. No rule calls the code it audits, and none repairs.
"""
