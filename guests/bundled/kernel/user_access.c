/* SPDX-License-Identifier: Apache-2.0 */
/* Reads and writes of user memory on its behalf: checked, and with a fix-up where they fault. */
#include "kernel.h"

bool copy_user(void *to, const void *from, u64 length);

bool user_range_valid(u64 address, u64 length)
{
    return address < USER_TOP && length <= USER_TOP - address;
}

bool copy_from_user(void *to, u64 from, u64 length)
{
    return user_range_valid(from, length) && copy_user(to, (const void *)from, length);
}

bool copy_to_user(u64 to, const void *from, u64 length)
{
    return user_range_valid(to, length) && copy_user((void *)to, from, length);
}
