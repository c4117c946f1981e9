// SPDX-License-Identifier: Apache-2.0
// The diagram as a file: the page map as pixels, the arrows and names as vectors above it.

import { image } from './pagemap.js';
import { svg } from './svg.js';

const STYLES = ['fill', 'stroke', 'stroke-width', 'stroke-dasharray', 'opacity', 'font', 'font-weight'];

/** The overlay with its styles written into it, so that it stands alone. */
function standalone(overlay) {
  const copy = overlay.cloneNode(true);
  const from = overlay.querySelectorAll('*'), to = copy.querySelectorAll('*');
  from.forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const name of STYLES) to[i].setAttribute(name === 'font' ? 'data-font' : name, style.getPropertyValue(name));
    to[i].setAttribute('font-family', 'sans-serif');
    to[i].setAttribute('font-size', style.getPropertyValue('font-size'));
  });
  return copy;
}

export function asSvg(overlay) {
  const canvas = image(), width = overlay.clientWidth, height = overlay.clientHeight;
  const picture = svg('image', { href: canvas.toDataURL('image/png'), width, height });
  const root = svg('svg', { xmlns: 'http://www.w3.org/2000/svg', viewBox: `0 0 ${width} ${height}`, width, height }, picture, ...standalone(overlay).childNodes);
  return new XMLSerializer().serializeToString(root);
}

export async function asPng(overlay) {
  const text = asSvg(overlay), picture = new Image();
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await picture.decode();
  const canvas = document.createElement('canvas'), ratio = Math.max(devicePixelRatio || 1, 2);
  canvas.width = overlay.clientWidth * ratio;
  canvas.height = overlay.clientHeight * ratio;
  canvas.getContext('2d').drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise(resolve => canvas.toBlob(resolve, 'image/png'));
}

export function download(blob, name) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
