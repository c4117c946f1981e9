// SPDX-License-Identifier: Apache-2.0
// What the parts of the test guest's init share.
#ifndef GUEST_H
#define GUEST_H

#include <stddef.h>
#include <stdint.h>

// Values for the debug-exit port (0xf4), as memvirt's own guests use them.
enum { EXIT_SUCCESS_VALUE = 0x10, EXIT_FAILURE_VALUE = 0x11, EXIT_USAGE_VALUE = 0x12 };

// Print one line on the console, prefixed with "linux-guest: ".
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Print why a workload failed and return -1.
int fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

// The value of NAME=... on the kernel command line as a number, or `otherwise`.
long parameter(const char *name, long otherwise);

// A field of /proc/meminfo in KiB, or -1.
long meminfo(const char *field);

// A pseudo-random word that depends on nothing but its argument (splitmix64's finalizer).
static inline uint64_t scramble(uint64_t word)
{
    word += 0x9e3779b97f4a7c15u;
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9u;
    word = (word ^ (word >> 27)) * 0x94d049bb133111ebu;
    return word ^ (word >> 31);
}

// Run a program and wait: its exit status, or -1 if it could not be run or was killed. Without an
// environment of its own it has this process's.
int run(char *const arguments[], char *const environment[]);

// Fork `count` children; child i exits with body(i, context). 0 if all exited with 0.
int in_children(int count, int (*body)(int index, void *context), void *context);

// Each workload returns 0 if everything it checked was right.
int work_fill(void);       // most of memory, written and verified
int work_processes(void);  // fork and copy-on-write
int work_cache(void);      // files in tmpfs
int work_compile(void);    // many short programs
int work_compute(void);    // arithmetic, integer and floating
int work_mappings(void);   // page tables made and unmade
int work_signals(void);    // faults handled by the program itself
int work_idle(void);       // nothing, and the clock
int work_programs32(void); // as compile, with programs of 32 bits

#endif
