# SPDX-License-Identifier: Apache-2.0
# What the beginnings of small guests share: small_guest.S (64 bits) and small_guest_32.S.
        .set    LOAD, 0x100000

        .macro  MULTIBOOT_HEADER
        .code32
        .text
header: .long   0x1BADB002, 0x10000, -(0x1BADB002 + 0x10000)
        .long   header, LOAD, _edata, _end, start
        .globl  start
        .endm

# Mask the 8259s, call `test`, and end with success; `end` ends with the exit value in %al.
        .macro  RUN_TEST
        mov     $0xFF, %al
        out     %al, $0x21
        out     %al, $0xA1
        call    test
        mov     $0x10, %al
end:    out     %al, $0xF4
9:      hlt
        jmp     9b
        .endm

# `stubs`: for each of the first `count` vectors 16 bytes that push it and go to `caught`.
        .macro  STUBS count:req
        .balign 16
stubs:
        .set    number, 0
        .rept   \count
        .balign 16
        push    $number
        jmp     caught
        .set    number, number + 1
        .endr
        .endm

        .macro  SERIAL_OUT                      # the byte in %al, on the console
        mov     $0x3F8, %edx
        out     %al, %dx
        .endm
