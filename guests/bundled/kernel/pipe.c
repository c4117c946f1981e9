/* SPDX-License-Identifier: Apache-2.0 */
/* A few pipes that any process may write and read, by number. */
#include "kernel.h"

#define PIPE_COUNT 32
#define PIPE_BYTES 64

struct pipe {
    u8 bytes[PIPE_BYTES];
    u64 written, read; /* running totals */
};

static struct pipe pipes[PIPE_COUNT];

static bool has_room(struct process *process)
{
    struct pipe *pipe = &pipes[process->condition_value];
    return pipe->written - pipe->read < PIPE_BYTES;
}

static bool has_bytes(struct process *process)
{
    struct pipe *pipe = &pipes[process->condition_value];
    return pipe->written != pipe->read;
}

/* All of `length`, waiting as often as it takes. */
s64 pipe_transfer(u64 number, u64 buffer, u64 length, bool write)
{
    if (number >= PIPE_COUNT)
        return ERROR_INVALID;
    struct pipe *pipe = &pipes[number];
    u8 byte;
    for (u64 i = 0; i < length; i++) {
        if (write) {
            if (!copy_from_user(&byte, buffer + i, 1))
                return ERROR_BAD_ADDRESS;
            current->condition_value = number;
            while (!has_room(current))
                block_until(has_room, number);
            pipe->bytes[pipe->written++ % PIPE_BYTES] = byte;
        } else {
            current->condition_value = number;
            while (!has_bytes(current))
                block_until(has_bytes, number);
            byte = pipe->bytes[pipe->read++ % PIPE_BYTES];
            if (!copy_to_user(buffer + i, &byte, 1))
                return ERROR_BAD_ADDRESS;
        }
    }
    return 0;
}
