/* SPDX-License-Identifier: Apache-2.0 */
/* Lines on the console, the one verdict, and the way out. */
#include "kernel.h"
#include "processor.h"

void print(const char *format, ...)
{
    char line[192];
    va_list values;
    va_start(values, format);
    size_t length = format_list(line, sizeof(line), format, values);
    va_end(values);
    serial_write("memvirt-guest: ", 15);
    serial_write(line, length);
    serial_write("\n", 1);
}

_Noreturn void shut_down(u32 value)
{
    out32(EXIT_PORT, value);
    for (;;)
        __asm__ volatile("cli; hlt");
}

_Noreturn void report_success(void)
{
    print("verdict: success");
    shut_down(EXIT_SUCCESS);
}

_Noreturn void report_failure(const struct failure *failure)
{
    print("verdict: failure: %s, address %x, expected %x, found %x", failure->what,
          failure->address, failure->expected, failure->found);
    shut_down(EXIT_FAILURE);
}

_Noreturn void fail(const char *what, u64 address, u64 expected, u64 found)
{
    struct failure failure = {.address = address, .expected = expected, .found = found};
    size_t length = strlen(what);
    if (length >= sizeof(failure.what))
        length = sizeof(failure.what) - 1;
    memcpy(failure.what, what, length);
    report_failure(&failure);
}
