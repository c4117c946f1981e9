// SPDX-License-Identifier: Apache-2.0
// Making elements. Text is always text: nothing that comes from a guest is ever parsed as markup.

const NAMESPACE = 'http://www.w3.org/2000/svg';

/** An SVG element with attributes and children (elements, or text). */
export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(NAMESPACE, name), attributes, children);
}

/** An HTML element with attributes (`on...` are listeners) and children (elements, or text). */
export function html(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}
