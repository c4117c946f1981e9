// SPDX-License-Identifier: Apache-2.0
// Colours of page classes and of VMs. The second palette is Okabe and Ito's (2008), which people
// with any common colour vision deficiency can tell apart.

const PALETTES = {
  usual: {
    guest: ['empty', '#4b8bd6', '#2fa66a', '#b58bd9', '#e0a526', '#d1553f', '#2c5f9e', '#17a2a8', '#8d6e63'],
    frame: ['empty', '#4b8bd6', '#2fa66a', '#8a5cc7', '#8a5cc7', '#b9c2cf', '#7a8595', '#e0a526'],
  },
  okabe: {
    guest: ['empty', '#0072b2', '#009e73', '#cc79a7', '#f0e442', '#d55e00', '#56b4e9', '#e69f00', '#999999'],
    frame: ['empty', '#0072b2', '#009e73', '#e69f00', '#e69f00', '#b9c2cf', '#7a8595', '#f0e442'],
  },
};
const VM_HUES = [210, 28, 150, 280, 55, 345, 185, 100, 310, 240, 10, 75];

let current = 'usual';

export function usePalette(name) { current = name in PALETTES ? name : 'usual'; }
export function paletteName() { return current; }
export function otherPalette() { return current === 'usual' ? 'okabe' : 'usual'; }

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
