/* SPDX-License-Identifier: Apache-2.0 */
/* The programs of ring 3, as one flat image; the kernel maps its pages read-only. */
    .section .user_image, "a"
    .incbin USER_BINARY
    .section .note.GNU-stack, "", @progbits
