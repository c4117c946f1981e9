/* SPDX-License-Identifier: Apache-2.0 */
/* The few memory and text functions that both halves, and the compiler itself, call. */
#include "common.h"

void *memset(void *to, int byte, size_t length)
{
    void *end = to;
    __asm__ volatile("rep stosb" : "+D"(end), "+c"(length) : "a"(byte) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, size_t length)
{
    void *end = to;
    __asm__ volatile("rep movsb" : "+D"(end), "+S"(from), "+c"(length) : : "memory");
    return to;
}

int memcmp(const void *one, const void *other, size_t length)
{
    const u8 *a = one, *b = other;
    for (size_t i = 0; i < length; i++)
        if (a[i] != b[i])
            return a[i] < b[i] ? -1 : 1;
    return 0;
}

size_t strlen(const char *text)
{
    size_t length = 0;
    while (text[length])
        length++;
    return length;
}

bool text_equal(const char *one, const char *other)
{
    while (*one && *one == *other)
        one++, other++;
    return *one == *other;
}
