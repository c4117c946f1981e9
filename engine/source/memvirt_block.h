/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/*
 * What memvirt's engine does at the begin of every block of translated code: add the block's bytes
 * to a counter of the embedder and compare it with the embedder's deadline. One load, one add, one
 * store, one compare with memory, one branch that is not taken. Everything else lies at the end of
 * the block and calls HELPER(memvirt_block).
 *
 * Included by accel/tcg/translator.c only.
 */
#ifndef MEMVIRT_BLOCK_H
#define MEMVIRT_BLOCK_H

/* Code that one block's begin needs at its end. */
typedef struct MemvirtBlock {
    TCGLabel *slow;    /* the deadline has come: NULL if this block does not count */
    TCGLabel *go_on;   /* the block's first instruction */
    TCGOp *size_op[2]; /* constants to set once the block's size is known */
} MemvirtBlock;

/* A constant whose value is set later: its op, so that args[1] can be written. */
static inline TCGOp *memvirt_last_op(TCGContext *tcg_ctx)
{
    return QTAILQ_LAST(&tcg_ctx->ops);
}

static inline bool memvirt_block_counts(struct uc_struct *uc)
{
    return uc->memvirt_count != NULL;
}

static inline void memvirt_gen_block_start(TCGContext *tcg_ctx, MemvirtBlock *block)
{
    struct uc_struct *uc = tcg_ctx->uc;
    TCGv_ptr count_at = tcg_const_ptr(tcg_ctx, uc->memvirt_count);
    TCGv_ptr deadline_at = tcg_const_ptr(tcg_ctx, uc->memvirt_deadline);
    TCGv_i64 count = tcg_temp_new_i64(tcg_ctx);
    TCGv_i64 deadline = tcg_temp_new_i64(tcg_ctx);
    TCGv_i64 size = tcg_const_i64(tcg_ctx, 0);

    block->size_op[0] = memvirt_last_op(tcg_ctx);
    block->slow = gen_new_label(tcg_ctx);
    block->go_on = gen_new_label(tcg_ctx);
    tcg_gen_ld_i64(tcg_ctx, count, count_at, 0);
    tcg_gen_add_i64(tcg_ctx, count, count, size);
    tcg_gen_st_i64(tcg_ctx, count, count_at, 0);
    tcg_gen_ld_i64(tcg_ctx, deadline, deadline_at, 0);
    tcg_gen_brcond_i64(tcg_ctx, TCG_COND_GE, count, deadline, block->slow);
    gen_set_label(tcg_ctx, block->go_on);
    tcg_temp_free_i64(tcg_ctx, size);
    tcg_temp_free_i64(tcg_ctx, deadline);
    tcg_temp_free_i64(tcg_ctx, count);
    tcg_temp_free_ptr(tcg_ctx, deadline_at);
    tcg_temp_free_ptr(tcg_ctx, count_at);
}

/* Behind the block's own end, which does not return here. */
static inline void memvirt_gen_block_end(TCGContext *tcg_ctx, MemvirtBlock *block,
                                         TranslationBlock *tb)
{
    TCGv_i64 pc, eip;
    TCGv_i32 size;

    gen_set_label(tcg_ctx, block->slow);
    pc = tcg_const_i64(tcg_ctx, tb->pc);
    eip = tcg_const_i64(tcg_ctx, tb->pc - tb->cs_base);
    size = tcg_const_i32(tcg_ctx, 0);
    block->size_op[1] = memvirt_last_op(tcg_ctx);
    gen_helper_memvirt_block(tcg_ctx, tcg_ctx->cpu_env, eip, pc, size);
    tcg_temp_free_i32(tcg_ctx, size);
    tcg_temp_free_i64(tcg_ctx, eip);
    tcg_temp_free_i64(tcg_ctx, pc);
    tcg_gen_br(tcg_ctx, block->go_on);
}

/* Now that the block has been translated. */
static inline void memvirt_set_block_size(MemvirtBlock *block, TranslationBlock *tb)
{
    block->size_op[0]->args[1] = tb->size;
    block->size_op[1]->args[1] = tb->size;
}

#endif
