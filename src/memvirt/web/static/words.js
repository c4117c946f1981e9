// SPDX-License-Identifier: Apache-2.0
// How many of something, for people.

/** "1 page", "2 pages", "1,000 pages". */
export function counted(number, one, many = `${one}s`) { return `${number.toLocaleString('en')} ${number === 1 ? one : many}`; }
