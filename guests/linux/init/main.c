// SPDX-License-Identifier: Apache-2.0
// The first process of the test guest: mounts what is needed, loads the balloon driver, runs the
// workload named on the kernel command line and reports a verdict, or gives a shell.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

#define DEBUG_EXIT_PORT 0xf4
#define MAXIMUM_WORKLOADS 16

static char command_line[4096];

static const struct workload {
    const char *name;
    int (*run)(void);
} workloads[] = {
    {"fill", work_fill},         {"processes", work_processes}, {"cache", work_cache},
    {"compile", work_compile},   {"compute", work_compute},     {"mappings", work_mappings},
    {"signals", work_signals},   {"idle", work_idle},           {"programs32", work_programs32},
};
#define WORKLOADS (sizeof workloads / sizeof *workloads)

static void say_list(const char *format, va_list arguments)
{
    char line[512];
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    if (length > (int)sizeof line - 2)
        length = sizeof line - 2;
    printf("linux-guest: %.*s\n", length, line);
    fflush(stdout);
}

void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say_list(format, arguments);
    va_end(arguments);
}

int fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say_list(format, arguments);
    va_end(arguments);
    return -1;
}

static const char *text_parameter(const char *name)
{
    static char value[256];
    size_t length = strlen(name);
    for (const char *at = command_line; *at; at += strcspn(at, " \n")) {
        at += strspn(at, " \n");
        if (strncmp(at, name, length) == 0 && at[length] == '=') {
            at += length + 1;
            snprintf(value, sizeof value, "%.*s", (int)strcspn(at, " \n"), at);
            return value;
        }
    }
    return NULL;
}

long parameter(const char *name, long otherwise)
{
    const char *text = text_parameter(name);
    return text ? strtol(text, NULL, 0) : otherwise;
}

long meminfo(const char *field)
{
    char line[128];
    long kib = -1;
    FILE *file = fopen("/proc/meminfo", "r");
    while (file && fgets(line, sizeof line, file)) {
        size_t length = strlen(field);
        if (strncmp(line, field, length) == 0 && line[length] == ':')
            kib = strtol(line + length + 1, NULL, 10);
    }
    if (file)
        fclose(file);
    return kib;
}

int run(char *const arguments[], char *const environment[])
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        execve(arguments[0], arguments, environment ? environment : environ);
        _exit(127);
    }
    if (child < 0 || waitpid(child, &status, 0) != child)
        return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int in_children(int count, int (*body)(int index, void *context), void *context)
{
    int bad = 0, started = 0;
    for (; started < count; started++) {
        pid_t child = fork();
        if (child == 0)
            _exit(body(started, context) ? 1 : 0);
        if (child < 0) {
            bad = fail("fork %d of %d: %s", started + 1, count, strerror(errno));
            break;
        }
    }
    for (int i = 0; i < started; i++) {
        int status;
        if (wait(&status) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
            bad = fail("a child failed (status %#x)", status);
    }
    return bad;
}

static void finish(int value)
{
    fflush(stdout);
    tcdrain(STDOUT_FILENO);
    sync();
    if (ioperm(DEBUG_EXIT_PORT, 4, 1) == 0)
        outl(value, DEBUG_EXIT_PORT);
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}

static void mount_one(const char *kind, const char *where)
{
    mkdir(where, 0755);
    if (mount(kind, where, kind, 0, NULL) != 0)
        say("mount %s: %s", where, strerror(errno));
}

static void read_command_line(void)
{
    int file = open("/proc/cmdline", O_RDONLY);
    ssize_t length = file < 0 ? -1 : read(file, command_line, sizeof command_line - 1);
    command_line[length > 0 ? length : 0] = 0;
    close(file);
}

static void load_module(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "/lib/modules/%s.ko", name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return;
    if (syscall(SYS_finit_module, file, "", 0) == 0)
        say("module %s loaded", name);
    else
        say("module %s: %s", name, strerror(errno));
    close(file);
}

// What busybox's poweroff, halt and reboot ask of the first process.
static void on_request(int signal)
{
    sync();
    reboot(signal == SIGTERM ? RB_AUTOBOOT : RB_POWER_OFF);
}

static void shell(void)
{
    static char *const arguments[] = {"sh", "-l", NULL};
    static char *const environment[] = {
        "PATH=/bin", "HOME=/", "TERM=linux", "PS1=guest# ", NULL};
    signal(SIGUSR1, on_request);
    signal(SIGUSR2, on_request);
    signal(SIGTERM, on_request);
    say("a shell; exit or poweroff ends the guest");
    pid_t child = fork();
    if (child == 0) {
        setsid();
        ioctl(STDIN_FILENO, TIOCSCTTY, 1);
        execve("/bin/sh", arguments, environment);
        _exit(127);
    }
    while (wait(NULL) != child || errno == EINTR)
        ;
    sync();
    reboot(RB_POWER_OFF);
}

static int one(const char *name)
{
    for (size_t i = 0; i < WORKLOADS; i++) {
        if (strcmp(workloads[i].name, name) == 0) {
            struct timespec before, after;
            say("%s: begins", name);
            clock_gettime(CLOCK_MONOTONIC, &before);
            int bad = workloads[i].run();
            clock_gettime(CLOCK_MONOTONIC, &after);
            long ms = (after.tv_sec - before.tv_sec) * 1000 +
                      (after.tv_nsec - before.tv_nsec) / 1000000;
            say("%s: %s after %ld ms of guest time", name, bad ? "FAILED" : "verified", ms);
            return bad ? EXIT_FAILURE_VALUE : EXIT_SUCCESS_VALUE;
        }
    }
    say("no workload is called \"%s\"", name);
    return EXIT_USAGE_VALUE;
}

static int all_of(const char *names)
{
    char list[256];
    int verdict = EXIT_SUCCESS_VALUE;
    snprintf(list, sizeof list, "%s", names);
    if (strcmp(list, "all") == 0)
        snprintf(list, sizeof list, "compute,signals,mappings,processes,cache,compile,fill,idle%s",
                 access("/bin32", F_OK) == 0 ? ",programs32" : "");
    for (char *name = strtok(list, ","); name; name = strtok(NULL, ",")) {
        int value = one(name);
        if (value != EXIT_SUCCESS_VALUE)
            verdict = value;
    }
    return verdict;
}

int main(void)
{
    struct utsname system;
    mount_one("proc", "/proc");
    mount_one("sysfs", "/sys");
    mount_one("devtmpfs", "/dev");
    mount_one("tmpfs", "/tmp");
    uname(&system);
    read_command_line();
    say("Linux %s, %ld KiB of memory, %ld KiB free", system.release, meminfo("MemTotal"),
        meminfo("MemFree"));
    if (parameter("balloon", 1)) {
        load_module("vmw_vmci");
        load_module("vmw_balloon");
    }
    const char *names = text_parameter("workload");
    if (!names)
        shell();
    if (strcmp(names ? names : "", "panic") == 0)
        _exit(3);  // init that ends is the kernel's panic
    int verdict = all_of(names);
    say("%ld KiB of memory, %ld KiB free", meminfo("MemTotal"), meminfo("MemFree"));
    say("verdict: %s", verdict == EXIT_SUCCESS_VALUE ? "success" : "failure");
    if (parameter("poweroff", 0)) {
        tcdrain(STDOUT_FILENO);
        reboot(parameter("poweroff", 0) == 2 ? RB_AUTOBOOT : RB_POWER_OFF);
    }
    finish(verdict);
}
