/* SPDX-License-Identifier: Apache-2.0 */
/* `key=value` words of the command line. Numbers are decimal, or hexadecimal after 0x. */
#include "kernel.h"

/* The text after `key=`, up to a blank; the last one of several wins. */
static const char *find(const char *key)
{
    size_t length = strlen(key);
    const char *found = NULL, *at = boot_info.command_line;
    while (*at) {
        while (*at == ' ')
            at++;
        if (memcmp(at, key, length) == 0 && at[length] == '=')
            found = at + length + 1;
        while (*at && *at != ' ')
            at++;
    }
    return found;
}

static u64 digit(char c)
{
    if (c >= '0' && c <= '9')
        return (u64)(c - '0');
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? (u64)(c - 'a' + 10) : 99;
}

u64 option_number(const char *key, u64 otherwise)
{
    const char *text = find(key);
    if (!text)
        return otherwise;
    u64 base = 10, value = 0;
    if (text[0] == '0' && (text[1] | 0x20) == 'x') {
        base = 16;
        text += 2;
    }
    const char *start = text;
    for (; digit(*text) < base; text++)
        value = value * base + digit(*text);
    if (text == start || (*text && *text != ' '))
        fail("a command line value is not a number", (u64)(text - boot_info.command_line), 0,
             (u8)*text);
    return value;
}

void option_text(const char *key, const char *otherwise, char *to, size_t size)
{
    const char *text = find(key);
    if (!text)
        text = otherwise;
    size_t i = 0;
    for (; text[i] && text[i] != ' ' && i < size - 1; i++)
        to[i] = text[i];
    to[i] = 0;
}
