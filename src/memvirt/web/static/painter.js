// SPDX-License-Identifier: Apache-2.0
// Draws lanes of cells: with WebGL2 from integer textures of page classes, or, where a browser has none,
// on a plain canvas. A lane is { part, x, y, w, h, first, count, perCell, columns, cell, gap, colours,
// second, secondColours }, lengths in device pixels; `second` names an array whose value, if not 0,
// gives the colour instead.

const WIDTH = 2048; // of textures: pages in a row
const SAMPLES = 48; // pages looked at for the histogram of one cell

const VERTEX = `#version 300 es
in vec2 corner;
void main() { gl_Position = vec4(corner, 0.0, 1.0); }`;

const FRAGMENT = `#version 300 es
precision highp float;
precision highp int;
precision highp usampler2D;
uniform usampler2D classes, owners;
uniform vec4 lane;       // x, y from the bottom, width, height
uniform vec2 cell;       // size of a cell, its gap included
uniform float gap, perCell;
uniform int first, count, columns;
uniform bool hasOwners;
uniform vec3 colours[16];
uniform vec3 ownerColours[64];
uniform vec3 ground;
out vec4 colour;
int at(usampler2D map, int page) { return int(texelFetch(map, ivec2(page % ${WIDTH}, page / ${WIDTH}), 0).r); }
vec3 paint(int page) {
  if (hasOwners) { int owner = at(owners, page); if (owner > 0) return ownerColours[min(owner, 63)]; }
  return colours[min(at(classes, page), 15)];
}
void main() {
  vec2 p = vec2(gl_FragCoord.x - lane.x, lane.y + lane.w - gl_FragCoord.y);
  ivec2 place = ivec2(floor(p / cell));
  vec2 inside = p - vec2(place) * cell;
  if (place.x >= columns || inside.x > cell.x - gap || inside.y > cell.y - gap) { colour = vec4(ground, 1.0); return; }
  int index = place.y * columns + place.x;
  int from = first + int(floor(float(index) * perCell));
  int to = min(first + int(floor(float(index + 1) * perCell)), count);
  if (from >= count) { colour = vec4(ground, 1.0); return; }
  int pages = max(to - from, 1);
  if (pages == 1) { colour = vec4(paint(from), 1.0); return; }
  // A cell of many pages is a histogram: bands of colour, as high as their parts, the classes in order.
  int looked = min(pages, ${SAMPLES});
  int wanted = min(int(float(looked) * inside.y / max(cell.y - gap, 1.0)), looked - 1);
  if (hasOwners) { colour = vec4(paint(from + wanted * pages / looked), 1.0); return; }
  int counts[16];
  for (int i = 0; i < 16; i++) counts[i] = 0;
  for (int i = 0; i < looked; i++) counts[min(at(classes, from + i * pages / looked), 15)]++;
  int sum = 0;
  for (int i = 15; i >= 0; i--) {
    sum += counts[i];
    if (wanted < sum) { colour = vec4(colours[i], 1.0); return; }
  }
  colour = vec4(ground, 1.0);
}`;

function compile(gl, kind, source) {
  const shader = gl.createShader(kind);
  gl.shaderSource(shader, source);
  gl.compileShader(shader);
  if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
  return shader;
}

class GlPainter {
  constructor(canvas, gl) {
    this.canvas = canvas;
    this.gl = gl;
    this.textures = new Map(); // part -> { texture, rows }
    this.dirty = new Set();
    this.#build();
    canvas.addEventListener('webglcontextlost', event => event.preventDefault());
    canvas.addEventListener('webglcontextrestored', () => { this.textures.clear(); this.#build(); this.onrestore?.(); });
  }

  #build() {
    const gl = this.gl, program = gl.createProgram();
    gl.attachShader(program, compile(gl, gl.VERTEX_SHADER, VERTEX));
    gl.attachShader(program, compile(gl, gl.FRAGMENT_SHADER, FRAGMENT));
    gl.linkProgram(program);
    gl.useProgram(program);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 3, -1, -1, 3]), gl.STATIC_DRAW);
    const corner = gl.getAttribLocation(program, 'corner');
    gl.enableVertexAttribArray(corner);
    gl.vertexAttribPointer(corner, 2, gl.FLOAT, false, 0, 0);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    const places = new Map();
    this.at = name => {
      if (!places.has(name)) places.set(name, gl.getUniformLocation(program, name));
      return places.get(name);
    };
    gl.uniform1i(this.at('classes'), 0);
    gl.uniform1i(this.at('owners'), 1);
  }

  stale(parts) { for (const part of parts) this.dirty.add(part); }

  #bind(unit, part, array) {
    const gl = this.gl, rows = Math.max(Math.ceil(array.length / WIDTH), 1);
    let held = this.textures.get(part);
    gl.activeTexture(gl.TEXTURE0 + unit);
    if (!held || held.rows !== rows) {
      if (held) gl.deleteTexture(held.texture);
      held = { texture: gl.createTexture(), rows };
      this.textures.set(part, held);
      gl.bindTexture(gl.TEXTURE_2D, held.texture);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
      gl.texStorage2D(gl.TEXTURE_2D, 1, gl.R8UI, WIDTH, rows);
      this.dirty.add(part);
    }
    gl.bindTexture(gl.TEXTURE_2D, held.texture);
    if (!this.dirty.delete(part)) return;
    const whole = Math.floor(array.length / WIDTH), rest = array.length % WIDTH;
    if (whole) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, WIDTH, whole, gl.RED_INTEGER, gl.UNSIGNED_BYTE, array.subarray(0, whole * WIDTH));
    if (rest) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, whole, rest, 1, gl.RED_INTEGER, gl.UNSIGNED_BYTE, array.subarray(whole * WIDTH));
  }

  draw(lanes, parts, ground) {
    const gl = this.gl, { width, height } = this.canvas;
    gl.viewport(0, 0, width, height);
    gl.disable(gl.SCISSOR_TEST);
    gl.clearColor(...ground, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.enable(gl.SCISSOR_TEST);
    gl.uniform3fv(this.at('ground'), ground);
    for (const lane of lanes) {
      const array = parts.get(lane.part);
      if (!array || lane.w <= 0 || lane.h <= 0) continue;
      const second = lane.second ? parts.get(lane.second) : null;
      this.#bind(0, lane.part, array);
      if (second) this.#bind(1, lane.second, second);
      const bottom = height - lane.y - lane.h;
      gl.scissor(lane.x, bottom, lane.w, lane.h);
      gl.uniform4f(this.at('lane'), lane.x, bottom, lane.w, lane.h);
      gl.uniform2f(this.at('cell'), ...lane.cell);
      gl.uniform1f(this.at('gap'), lane.gap);
      gl.uniform1f(this.at('perCell'), lane.perCell);
      gl.uniform1i(this.at('first'), lane.first);
      gl.uniform1i(this.at('count'), Math.min(lane.count, array.length));
      gl.uniform1i(this.at('columns'), lane.columns);
      gl.uniform1i(this.at('hasOwners'), second ? 1 : 0);
      gl.uniform3fv(this.at('colours'), spread(lane.colours, 16));
      if (second) gl.uniform3fv(this.at('ownerColours'), spread(lane.secondColours, 64));
      gl.drawArrays(gl.TRIANGLES, 0, 3);
    }
  }
}

function spread(colours, most) {
  const flat = new Float32Array(most * 3);
  for (let i = 0; i < most; i++) flat.set(colours[Math.min(i, colours.length - 1)] ?? [0, 0, 0], i * 3);
  return flat;
}

const css = ([r, g, b]) => `rgb(${r * 255 | 0} ${g * 255 | 0} ${b * 255 | 0})`;

class PlainPainter {
  constructor(canvas, context) { this.canvas = canvas; this.context = context; }

  stale() {}

  draw(lanes, parts, ground) {
    const { context, canvas } = this;
    context.fillStyle = css(ground);
    context.fillRect(0, 0, canvas.width, canvas.height);
    for (const lane of lanes) {
      const array = parts.get(lane.part);
      if (array) this.#lane(lane, array, lane.second ? parts.get(lane.second) : null);
    }
  }

  #lane(lane, array, owners) {
    const rows = Math.floor(lane.h / lane.cell[1]), count = Math.min(lane.count, array.length);
    const colours = lane.colours.map(css), ownerColours = (lane.secondColours ?? []).map(css);
    for (let index = 0; index < rows * lane.columns; index++) {
      const from = lane.first + Math.floor(index * lane.perCell);
      if (from >= count) break;
      const to = Math.max(Math.min(lane.first + Math.floor((index + 1) * lane.perCell), count), from + 1);
      const x = lane.x + (index % lane.columns) * lane.cell[0], y = lane.y + Math.floor(index / lane.columns) * lane.cell[1];
      const w = lane.cell[0] - lane.gap, h = lane.cell[1] - lane.gap;
      if (owners?.[from]) { this.context.fillStyle = ownerColours[Math.min(owners[from], 63)]; this.context.fillRect(x, y, w, h); continue; }
      const counts = new Uint16Array(16), looked = Math.min(to - from, SAMPLES);
      for (let i = 0; i < looked; i++) counts[array[from + Math.floor(i * (to - from) / looked)]]++;
      let top = y;
      for (let i = 15; i >= 0; i--) {
        if (!counts[i]) continue;
        this.context.fillStyle = colours[i];
        this.context.fillRect(x, top, w, h * counts[i] / looked);
        top += h * counts[i] / looked;
      }
    }
  }
}

/** The painter this browser can have. `?plain` in the address asks for the plain one. */
export function painterFor(canvas) {
  const plain = new URLSearchParams(location.search).has('plain');
  const gl = plain ? null : canvas.getContext('webgl2', { antialias: false, preserveDrawingBuffer: true });
  if (gl) return { painter: new GlPainter(canvas, gl), webgl: true };
  return { painter: new PlainPainter(canvas, canvas.getContext('2d')), webgl: false };
}
