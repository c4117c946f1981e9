/* SPDX-License-Identifier: Apache-2.0 */
/* processes: preempted by the timer, each with private memory, forking trees and talking. */
#include "user.h"

#define TREE_PAGES 8
#define TREE_DEPTH 2
#define SHARED (USER_HEAP + 0x40000000ull)

/* Fork two children a level; each changes what it inherited and checks that it alone did. */
static void grow_tree(u32 index, u64 argument)
{
    u64 depth = argument & 0xff, seed = argument >> 8;
    u64 own = seed * 2 + index + 1;
    for (u64 page = index; page < TREE_PAGES; page += 2)
        store(SHARED + page * PAGE_SIZE + depth * 8, own);
    call4(CALL_YIELD, 0, 0, 0, 0);
    if (depth > 1)
        in_children(2, grow_tree, own << 8 | (depth - 1));
    for (u64 page = index; page < TREE_PAGES; page += 2) {
        verify_value(SHARED + page * PAGE_SIZE + depth * 8, own, "processes: fork tree");
        verify_value(SHARED + page * PAGE_SIZE + (depth - 1) * 8, 0,
                     "processes: a grandchild's write reached its parent");
    }
}

/* The child sends a sum of what it inherited; the parent knows what it must be. */
static void send_sum(u64 pipe)
{
    u64 sum = 0;
    for (u64 word = 0; word < TREE_PAGES * WORDS_PER_PAGE; word++)
        sum += load(SHARED + word * 8);
    for (u64 i = 0; i < 32; i++) {
        u64 message = sum + i;
        require(CALL_PIPE_WRITE, pipe, (u64)&message, sizeof(message), 0);
    }
}

static void check_pipe(u64 pipe, u64 seed)
{
    u64 expected = 0, message;
    for (u64 i = 0; i < TREE_PAGES * WORDS_PER_PAGE; i++) {
        expected += mix(seed, i);
        store(SHARED + i * 8, mix(seed, i));
    }
    s64 child = call4(CALL_FORK, 0, 0, 0, 0);
    if (child == 0) {
        send_sum(pipe);
        exit(0);
    }
    for (u64 i = 0; i < 32; i++) {
        store(SHARED + i * PAGE_SIZE % (TREE_PAGES * PAGE_SIZE), i); /* must not reach the child */
        require(CALL_PIPE_READ, pipe, (u64)&message, sizeof(message), 0);
        if (message != expected + i)
            fail("processes: sum of a child", SHARED, expected + i, message);
    }
    if (call4(CALL_WAIT, (u64)child, 0, 0, 0))
        fail("processes: pipe child", 0, 0, 1);
}

u64 program_processes(u64 index, u64 count, u64 rounds, u64 seed, u64 pages)
{
    u64 own = seed + index * 0x1000;
    map(USER_HEAP, pages * PAGE_SIZE, PROT_READ | PROT_WRITE, 0);
    for (u64 round = 0; round < rounds; round++) {
        fill_range(USER_HEAP, pages, own + round);
        map(SHARED, TREE_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, 0);
        in_children(2, grow_tree, own << 8 | TREE_DEPTH);
        for (u64 page = 0; page < TREE_PAGES; page++)
            for (u64 word = 0; word <= TREE_DEPTH; word++)
                verify_value(SHARED + page * PAGE_SIZE + word * 8, 0,
                             "processes: a child's write reached its parent");
        check_pipe(index, own ^ round);
        verify_range(USER_HEAP, pages, own + round, "processes: private memory");
        unmap(SHARED, TREE_PAGES * PAGE_SIZE, round % 2 ? FLUSH_CR3 : FLUSH_INVLPG);
    }
    print("processes: process %u/%u: %u rounds verified", index + 1, count, rounds);
    return 0;
}
