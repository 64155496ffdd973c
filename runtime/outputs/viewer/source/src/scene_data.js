// Reads the scene out of the page: see runtime/outputs/viewer/quantization.py for what is in it.

/** Parse the description of the scene. */
export function readDescription() {
  return JSON.parse(document.getElementById("scene").textContent);
}

/** Unpack the bytes of all blocks. */
export async function readBytes() {
  const element = document.getElementById("data");
  const text = atob(element.textContent.trim());
  element.remove();
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * Decode the points of one block: differences from point to point, each byte of each coordinate in a plane of its own.
 *
 * Returns `places` (x, y, z and rank of the confidence as 16 bits) and `colors` (red, green, blue, 255).
 */
export function decodeBlock(bytes, start, count) {
  const plane = (index) => start + index * count;
  const places = new Uint16Array(4 * count);
  const colors = new Uint8Array(4 * count);
  for (let axis = 0; axis < 3; axis++) {
    const low = plane(2 * axis);
    const high = plane(2 * axis + 1);
    let value = 0;
    for (let i = 0; i < count; i++) {
      const folded = bytes[low + i] | (bytes[high + i] << 8);
      value = (value + ((folded >>> 1) ^ -(folded & 1))) & 0xffff;
      places[4 * i + axis] = value;
    }
  }
  let red = 0, green = 0, blue = 0, rank = 0;
  const [reds, greens, blues, ranks] = [plane(6), plane(7), plane(8), plane(9)];
  for (let i = 0; i < count; i++) {
    red = (red + bytes[reds + i]) & 255;
    green = (green + bytes[greens + i]) & 255;
    blue = (blue + bytes[blues + i]) & 255;
    rank = (rank + bytes[ranks + i]) & 255;
    colors[4 * i] = (red + green) & 255;
    colors[4 * i + 1] = green;
    colors[4 * i + 2] = (blue + green) & 255;
    colors[4 * i + 3] = 255;
    places[4 * i + 3] = rank * 257;
  }
  return { places, colors };
}

export const BYTES_PER_POINT = 10;
