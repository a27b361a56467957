// @ts-check
/** Sound as a WAV file: 16 bit, mono. No codec colours it, and every server reads it. No DOM. */

const HEADER_BYTES = 44;
const FULL_SCALE = 32_767;

/**
 * @param {Float32Array[]} pieces in order, −1 to 1
 * @param {number} rateHz
 */
export function asWav(pieces, rateHz) {
  const samples = pieces.reduce((sum, piece) => sum + piece.length, 0);
  const view = new DataView(new ArrayBuffer(HEADER_BYTES + 2 * samples));
  writeHeader(view, samples, rateHz);
  let at = HEADER_BYTES;
  for (const piece of pieces) {
    for (const sample of piece) {
      view.setInt16(at, Math.round(FULL_SCALE * Math.max(-1, Math.min(1, sample))), true);
      at += 2;
    }
  }
  return new Blob([view.buffer], { type: 'audio/wav' });
}

/**
 * @param {DataView} view
 * @param {number} samples
 * @param {number} rateHz
 */
function writeHeader(view, samples, rateHz) {
  const text = (/** @type {number} */ at, /** @type {string} */ word) =>
    [...word].forEach((letter, index) => view.setUint8(at + index, letter.charCodeAt(0)));
  text(0, 'RIFF');
  view.setUint32(4, HEADER_BYTES - 8 + 2 * samples, true);
  text(8, 'WAVEfmt ');
  view.setUint32(16, 16, true); // bytes of the format
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, rateHz, true);
  view.setUint32(28, 2 * rateHz, true); // bytes a second
  view.setUint16(32, 2, true); // bytes of a sample of all channels
  view.setUint16(34, 16, true); // bits
  text(36, 'data');
  view.setUint32(40, 2 * samples, true);
}
