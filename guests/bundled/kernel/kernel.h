/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel's interfaces, one group a file.
 *
 * Three kinds of address: `physical` (gPA, u64), `address` (gVA, u64), and pointers, which are
 * kernel virtual. direct() turns a physical address into a pointer.
 */
#ifndef KERNEL_H
#define KERNEL_H

#include "layout.h"

/* serial.c, report.c */
void serial_initialize(void);
void serial_write(const char *text, size_t length);
void print(const char *format, ...);
_Noreturn void report_success(void);
_Noreturn void report_failure(const struct failure *failure);
_Noreturn void fail(const char *what, u64 address, u64 expected, u64 found);
_Noreturn void shut_down(u32 value);
#define ASSERT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition))                                                                          \
            fail("assertion: " #condition, 0, 1, 0);                                               \
    } while (0)

/* boot_info.c */
struct memory_range {
    u64 start, end; /* physical, page-aligned */
};
struct boot_info {
    char command_line[512];
    struct memory_range ranges[16]; /* usable RAM, ascending */
    u32 range_count;
};
extern struct boot_info boot_info;
void boot_info_read(u32 protocol, u64 information);

/* options.c: `key=value` words of the command line */
u64 option_number(const char *key, u64 otherwise);
void option_text(const char *key, const char *otherwise, char *to, size_t size);

/* direct.c */
void *direct(u64 physical);
void direct_map_ready(void); /* the whole direct map is in force */

/* physical.c: pages of RAM */
void physical_initialize(u64 metadata_start);
u64 physical_metadata_bytes(void);
void physical_adopt(u64 start, u64 end);
void physical_soil(void);
u64 page_allocate(void);        /* 0 if there is none; content undefined; one reference */
u64 page_allocate_zeroed(void);
u64 large_allocate(void);       /* 2 MiB, aligned; references counted at its first page */
void page_take(u64 physical);   /* one more reference */
void page_release(u64 physical); /* one fewer; the last one frees it */
void large_release(u64 physical);
void large_break(u64 physical); /* now 512 pages with one reference each */
u32 page_references(u64 physical);
u64 pages_free(void); /* lent ones included: they can be had back */
u64 pages_total(void);
u64 blocks_assured(void); /* 2 MiB blocks to be had whenever nothing runs */
u64 page_borrow(u64 kept);    /* a page to be lent, or 0 if only `kept` are left beside the zone */
void page_lend(u64 physical); /* a page with one reference is the host's */
u64 page_recall(void);        /* the page lent last, with one reference; 0 if none is */
void pages_recall_all(void);
u64 pages_lent(void);
void pages_on_shortage(bool (*handler)(void)); /* frees some lent pages; false if it cannot */

/* paging.c: tables and entries */
#define ENTRY_PRESENT 0x1u
#define ENTRY_WRITABLE 0x2u
#define ENTRY_USER 0x4u
#define ENTRY_ACCESSED 0x20u
#define ENTRY_DIRTY 0x40u
#define ENTRY_LARGE 0x80u
#define ENTRY_GLOBAL 0x100u
#define ENTRY_NX (1ull << 63)
#define ENTRY_ADDRESS 0x000ffffffffff000ull
extern u64 kernel_root;
extern bool smep_enabled, smap_enabled;
void paging_initialize(void);
u64 *paging_entry(u64 root, u64 address, int level, bool create);
u64 *paging_leaf(u64 root, u64 address, int *level);
void paging_prune(u64 root, u64 address);
u64 paging_new_root(void);
void paging_flush(u64 address, u64 length, u64 flush);

/* memory.c: what a process has mapped */
struct region {
    u64 start, end;
    u8 protection, flags;
};
#define REGION_COUNT 16
struct process;
void memory_initialize(void);
bool memory_resolve(struct process *process, u64 address, u64 error);
void memory_start(struct process *process);
void memory_fork(struct process *parent, struct process *child);
void memory_free(struct process *process);
struct region *memory_region(struct process *process, u64 address);
s64 memory_map(struct process *process, u64 address, u64 length, u64 protection, u64 flags);
s64 memory_unmap(struct process *process, u64 address, u64 length, u64 flush);
s64 memory_protect(struct process *process, u64 address, u64 length, u64 protection, u64 flush);
/* memory_edit.c: edits a usual kernel would not offer */
s64 memory_alias(struct process *process, u64 from, u64 to, u64 length, u64 protection);
s64 memory_exchange(struct process *process, u64 one, u64 other, u64 length, u64 flush);
s64 memory_exchange_tables(struct process *process, u64 one, u64 other, u64 level, u64 flush);
s64 memory_protect_table(struct process *process, u64 address, u64 level, u64 writable, u64 flush);
s64 memory_split(struct process *process, u64 address, u64 flush);
s64 memory_collapse(struct process *process, u64 address, u64 flush);
s64 memory_mapping(struct process *process, u64 address);
s64 memory_poison(struct process *process, u64 address, u64 kind, bool on);
u64 protection_bits(u8 protection);

/* descriptors.c, routines.S */
#define VECTOR_IRQ_END 0x30
void descriptors_initialize(const char *stubs); /* `stubs`: entry code, 16 bytes a vector */
void set_kernel_stack(u64 top);
extern void return_to_user(void);

/* user_access.c */
bool copy_from_user(void *to, u64 from, u64 length);
bool copy_to_user(u64 to, const void *from, u64 length);
bool user_range_valid(u64 address, u64 length);

/* interrupts.S, interrupts.c */
struct frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    u64 vector, error;
    u64 rip, cs, rflags, rsp, ss;
};
struct kernel_probe {
    bool armed;
    u64 rip, rsp; /* where to resume */
    struct fault_record record;
};
extern struct kernel_probe kernel_probe;
void interrupts_initialize(void);
void run_kernel_probe(void (*code)(u64), u64 argument); /* armed; the record says what happened */

/* timer.c */
extern volatile u64 ticks;
void timer_initialize(void);
void timer_on_tick(void (*handler)(void)); /* called at each tick, interrupts disabled; one */
void timer_interrupt(void);

/* balloon.c */
void balloon_initialize(void);

/* process.c */
enum process_state { PROCESS_FREE, PROCESS_READY, PROCESS_BLOCKED, PROCESS_ENDED };
struct process {
    enum process_state state;
    u32 slot, parent, pid;
    u64 root;
    u64 stack_page; /* physical */
    u64 saved_rsp;
    u64 status;
    bool (*condition)(struct process *); /* blocked until it holds */
    u64 condition_value;
    bool direct_print; /* prints at once; otherwise into `log`, shown when it is collected */
    char *log;
    u32 log_length;
    u64 probe_rip, probe_rsp; /* where to resume after a fatal fault; RIP 0 = not armed */
    struct fault_record fault;
    u64 last_fault, repeated_faults;
    struct region regions[REGION_COUNT];
};
#define PROCESS_COUNT 128
extern struct process processes[PROCESS_COUNT];
extern struct process *current;
void processes_initialize(void);
struct process *process_start(u32 program, const u64 arguments[5], bool direct_print);
u64 process_collect(struct process *process); /* waits, shows its log, returns its status */
u64 process_run(u32 program, const u64 arguments[5]); /* start, collect */
s64 process_fork(const struct frame *frame);
_Noreturn void process_end(u64 status);
void process_print(const char *text, u64 length);
_Noreturn void process_killed(const struct frame *frame);
void schedule(void);
void block_until(bool (*condition)(struct process *), u64 value);

/* syscall.c, pipe.c */
void syscall_dispatch(struct frame *frame);
s64 pipe_transfer(u64 pipe, u64 buffer, u64 length, bool write);

#endif
