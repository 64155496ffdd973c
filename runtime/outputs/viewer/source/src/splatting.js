import {
  AlwaysDepth, BufferGeometry, DataTexture, Float32BufferAttribute, FloatType, GLSL3, Matrix4, Mesh, RawShaderMaterial,
  RedFormat, RGBAFormat, UnsignedByteType,
} from "three";

const VERTEX = `
in vec4 position;
void main() { gl_Position = position; }`;
const FRAGMENT = `
precision highp float;
precision highp sampler2D;
uniform sampler2D colors, nearness;
uniform vec2 depth;
out vec4 result;
void main() {
  float near = texelFetch(nearness, ivec2(gl_FragCoord.xy), 0).r;
  if (near == 0.0) discard;
  result = vec4(texelFetch(colors, ivec2(gl_FragCoord.xy), 0).rgb, 1.0);
  gl_FragDepth = 0.5 * (depth.x + depth.y * near) + 0.5;
}`;
const MATRIX = 18; // numbers of a block: four rows of a matrix to pixels, ...

/**
 * Draws points as WebGL does, but by the processor, and hands WebGL the picture with its depth. Where WebGL itself has
 * only the processor, this is many times as fast.
 */
export class Splatter {
  constructor() {
    const material = new RawShaderMaterial({
      vertexShader: VERTEX,
      fragmentShader: FRAGMENT,
      glslVersion: GLSL3,
      depthFunc: AlwaysDepth,
      uniforms: { colors: { value: null }, nearness: { value: null }, depth: { value: [0, 0] } },
    });
    this.uniforms = material.uniforms;
    const geometry = new BufferGeometry();
    geometry.setAttribute("position", new Float32BufferAttribute([-1, -1, 0, 1, 3, -1, 0, 1, -1, 3, 0, 1], 4));
    this.mesh = new Mesh(geometry, material);
    this.mesh.frustumCulled = false;
    this.mesh.renderOrder = -1;
    this.width = this.height = 0;
  }

  resize(width, height) {
    if (width === this.width && height === this.height) return;
    Object.assign(this, { width, height });
    this.colors = new Uint32Array(width * height);
    this.nearness = new Float32Array(width * height); // 1 / distance ahead; 0 where there is no point
    for (const name of ["colors", "nearness"]) this.uniforms[name].value?.dispose();
    const bytes = new Uint8Array(this.colors.buffer);
    this.uniforms.colors.value = new DataTexture(bytes, width, height, RGBAFormat, UnsignedByteType);
    this.uniforms.nearness.value = new DataTexture(this.nearness, width, height, RedFormat, FloatType);
  }

  /** Draw the first `count` points each of some parts, on a picture of `width` and `height` pixels. */
  draw(parts, camera, width, height, look) {
    this.resize(width, height);
    this.nearness.fill(0);
    for (const { part, count } of parts) {
      const blocks = this.placeBlocks(part, camera);
      for (const { start, end } of part.runs(count)) this.splat(part, start, end, blocks, camera.near, look);
    }
    for (const name of ["colors", "nearness"]) this.uniforms[name].value.needsUpdate = true;
    const { elements } = camera.projectionMatrix;
    this.uniforms.depth.value = [-elements[10], elements[14]];
  }

  /** For each block of a part: rows from steps to pixels times depth, and to depth; then places relative to its eye. */
  placeBlocks(part, camera) {
    const toPixels = new Matrix4()
      .set(this.width / 2, 0, 0, this.width / 2, 0, this.height / 2, 0, this.height / 2, 0, 0, 0, 1, 0, 0, 0, 1)
      .multiply(camera.projectionMatrix)
      .multiply(camera.matrixWorldInverse);
    const result = new Float64Array(MATRIX * part.blocks.length);
    part.blocks.forEach(({ toWorld, eye, angle }, number) => {
      const m = toPixels.clone().multiply(toWorld).elements;
      const w = toWorld.elements;
      result.set([m[0], m[4], m[8], m[12], m[1], m[5], m[9], m[13], m[3], m[7], m[11], m[15]], MATRIX * number);
      result.set([w[0], w[5], w[10], w[12] - eye[0], w[13] - eye[1], w[14] - eye[2]].map((v) => v * angle), MATRIX * number + 12);
    });
    return result;
  }

  splat(part, start, end, blocks, near, { size, pixels, edge, least }) {
    const { places, colors, shades, shown } = part;
    const { width, height, nearness, colors: picture } = this;
    const scale = size * pixels;
    for (let i = start; i < end; i++) {
      const at = 4 * i;
      const number = places[at + 3];
      if (colors[at + 3] < least || !shown[number]) continue;
      const [x, y, z] = [places[at], places[at + 1], places[at + 2]];
      const m = MATRIX * number;
      const w = blocks[m + 8] * x + blocks[m + 9] * y + blocks[m + 10] * z + blocks[m + 11];
      if (w <= near) continue;
      const q = 1 / w;
      const column = (blocks[m] * x + blocks[m + 1] * y + blocks[m + 2] * z + blocks[m + 3]) * q;
      const row = (blocks[m + 4] * x + blocks[m + 5] * y + blocks[m + 6] * z + blocks[m + 7]) * q;
      const dx = blocks[m + 12] * x + blocks[m + 15];
      const dy = blocks[m + 13] * y + blocks[m + 16];
      const dz = blocks[m + 14] * z + blocks[m + 17];
      const usual = Math.sqrt(dx * dx + dy * dy + dz * dz);
      const side = scale * (usual > edge ? usual : edge) * q;
      const half = side < 1 ? 0.5 : side > 48 ? 24 : side / 2;
      let left = Math.ceil(column - half - 0.5);
      let right = Math.ceil(column + half - 0.5);
      let low = Math.ceil(row - half - 0.5);
      let high = Math.ceil(row + half - 0.5);
      // As WebGL, which leaves out points whose middle is outside.
      if (column < 0 || column > width || row < 0 || row > height) continue;
      if (left < 0) left = 0;
      if (low < 0) low = 0;
      if (right > width) right = width;
      if (high > height) high = height;
      const shade = shades[i];
      for (let line = low * width; line < high * width; line += width) {
        for (let pixel = line + left; pixel < line + right; pixel++) {
          if (q > nearness[pixel]) {
            nearness[pixel] = q;
            picture[pixel] = shade;
          }
        }
      }
    }
  }
}
