# SPDX-License-Identifier: Apache-2.0
"""The VMkernel as the pager of a running virtual machine that is not ours (experimental).

``userfaultfd`` the kernel's interface; ``page_states`` where each page is, and the protocol of all
processes; ``transitions`` the state machine; ``memory`` the VM's memory; ``blocks``, ``store``,
``sharing_table`` the evicted pages; ``channel`` messages; ``fault_handler``, ``evictor``,
``supervisor`` the three processes; ``victims`` the policy; ``attachment`` what is on disk;
``session`` attach and resume; ``transport``, ``qemu``, ``ptrace``, ``handoff`` how a userfaultfd
is obtained; ``collisions`` what is refused; ``status`` what is told. docs/paging-live.md has the
whole.
"""
