// SPDX-License-Identifier: Apache-2.0
// Colours of page classes and of VMs. The second palette is for people who lack one kind of cone: its
// colours were searched for so that any two of them stay far apart to any of them (test_palette.py).

const PALETTES = {
  usual: {
    guest: ['empty', '#4b8bd6', '#2fa66a', '#b58bd9', '#e0a526', '#d1553f', '#2c5f9e', '#17a2a8', '#8d6e63'],
    frame: ['empty', '#4b8bd6', '#2fa66a', '#8a5cc7', '#8a5cc7', '#b9c2cf', '#7a8595', '#e0a526'],
  },
  distinct: {
    guest: ['empty', '#2d248e', '#00945e', '#7f6a8a', '#effa08', '#b80019', '#02ccfe', '#ff7e00', '#4fff7a'],
    frame: ['empty', '#2d248e', '#00945e', '#ff7e00', '#ff7e00', '#9ea7b4', '#5b6676', '#effa08'],
  },
};
const VM_HUES = [210, 28, 150, 280, 55, 345, 185, 100, 310, 240, 10, 75];

let current = 'usual';

export function usePalette(name) { current = name in PALETTES ? name : 'usual'; }
export function paletteName() { return current; }
export function otherPalette() { return current === 'usual' ? 'distinct' : 'usual'; }

function emptyColour() {
  return getComputedStyle(document.documentElement).getPropertyValue('--empty').trim();
}

/** Colours of guest classes, by number. */
export function guestColours() { return PALETTES[current].guest.map(c => c === 'empty' ? emptyColour() : c); }
/** Colours of frame classes, by number. */
export function frameColours() { return PALETTES[current].frame.map(c => c === 'empty' ? emptyColour() : c); }

/** Colour of the VM at this position. */
export function vmColour(position) {
  const hue = VM_HUES[position % VM_HUES.length];
  return hslToHex(hue, 58, 52 - 8 * (Math.floor(position / VM_HUES.length) % 3));
}

// When a page was touched last, by use class: dark and cold is long ago, bright and warm is now.
const USE = ['empty', '#3d3f63', '#3567a8', '#3fa3a8', '#e2b93b', '#ffe98a'];
/** Colours of use classes, by number; the first, of pages that are not in memory, stands for all that have none. */
export function useColours() { return USE.map(c => c === 'empty' ? emptyColour() : c); }

/** From idle (cold) to active (warm), for a part from 0 to 1. */
export function activityColour(part) { return hslToHex(220 - 200 * part, 65, 52); }

function hslToHex(hue, saturation, lightness) {
  const l = lightness / 100, a = saturation / 100 * Math.min(l, 1 - l);
  const channel = n => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (l - a * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return '#' + [channel(0), channel(8), channel(4)].map(v => v.toString(16).padStart(2, '0')).join('');
}

/** [red, green, blue] from 0 to 1 of "#rrggbb". */
export function rgb(hex) {
  return [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16) / 255);
}
