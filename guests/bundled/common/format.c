/* SPDX-License-Identifier: Apache-2.0 */
/* A minimal printf: %u and %x take u64, %s text, %% a percent sign. */
#include "common.h"

struct sink {
    char *at;
    char *end; /* one byte is kept for the terminator */
};

static void put(struct sink *sink, char c)
{
    if (sink->at < sink->end)
        *sink->at++ = c;
}

static void put_number(struct sink *sink, u64 value, u64 base)
{
    char digits[20];
    int count = 0;
    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (count)
        put(sink, digits[--count]);
}

size_t format_list(char *to, size_t size, const char *format, va_list values)
{
    struct sink sink = {to, to + size - 1};
    for (; *format; format++) {
        if (*format != '%') {
            put(&sink, *format);
            continue;
        }
        switch (*++format) {
        case 'u':
            put_number(&sink, va_arg(values, u64), 10);
            break;
        case 'x':
            put(&sink, '0');
            put(&sink, 'x');
            put_number(&sink, va_arg(values, u64), 16);
            break;
        case 's':
            for (const char *text = va_arg(values, const char *); *text; text++)
                put(&sink, *text);
            break;
        default:
            put(&sink, *format);
        }
    }
    *sink.at = 0;
    return (size_t)(sink.at - to);
}

size_t format_line(char *to, size_t size, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    size_t length = format_list(to, size, format, values);
    va_end(values);
    return length;
}
