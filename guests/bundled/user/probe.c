/* SPDX-License-Identifier: Apache-2.0 */
/* Run code that is expected to fault for good, and compare what the kernel saw. */
#include "user.h"

extern char probe_read_at[], probe_write_at[];

struct fault_record probe(void (*code)(u64), u64 argument)
{
    struct fault_record record;
    run_probe(code, argument);
    require(CALL_PROBE_RESULT, (u64)&record, 0, 0, 0);
    return record;
}

/* For probe_read, probe_write and probe_fetch. */
void expect_page_fault(void (*code)(u64), u64 address, u64 error, const char *what)
{
    struct fault_record record = probe(code, address);
    u64 rip = code == probe_read ? (u64)probe_read_at : (u64)probe_write_at;
    if (code == probe_fetch)
        rip = address;
    if (record.vector != 14)
        fail(what, address, 14, record.vector);
    if (record.error != error)
        fail(what, address, error, record.error);
    if (record.address != address)
        fail(what, address, address, record.address);
    if (record.rip != rip)
        fail(what, address, rip, record.rip);
}
