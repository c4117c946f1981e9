/* SPDX-License-Identifier: Apache-2.0 */
/* For assembly: with SMAP, user pages are out of reach except between these two. */
    .macro user_access_begin
    cmpb $0, smap_enabled(%rip)
    je .Lno_smap\@
    stac
.Lno_smap\@:
    .endm

    .macro user_access_end
    cmpb $0, smap_enabled(%rip)
    je .Lno_smap\@
    clac
.Lno_smap\@:
    .endm
