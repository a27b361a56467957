// @ts-check
/**
 * Files that the user shows the agent: pictures scaled down here, recordings and films as they are,
 * all as data URLs. No DOM but a canvas.
 */

/** @typedef {'picture' | 'sound' | 'film'} AttachmentKind */
/** @typedef {{kind: AttachmentKind, name: string, url: string}} Attachment */

/** Longer sides bring nothing: the model looks at nine tiles of 448 pixels at most. */
export const MAX_SIDE_PX = 1568;
/** Of what is opened to be scaled down: beyond it browsers run out of memory. */
const MAX_PICTURE_BYTES = 40_000_000;
/** As the server takes them. */
const MAX_MEDIA_BYTES = 32 * 1024 * 1024;
/** Smaller and smaller, until the picture fits: [share of the side, quality]. */
const STEPS = [
  [1, 0.9],
  [1, 0.75],
  [1, 0.55],
  [0.75, 0.6],
  [0.5, 0.6],
  [0.35, 0.5],
  [0.2, 0.5],
];

/** @type {Record<AttachmentKind, string>} */
const PLURALS = { picture: 'pictures', sound: 'sound', film: 'films' };
/** @type {Record<string, AttachmentKind>} */
const KIND_BY_TYPE = { image: 'picture', audio: 'sound', video: 'film' };
/** For files that the system knows no type of. @type {Record<string, string>} */
const TYPE_BY_ENDING = {
  aac: 'audio/aac',
  flac: 'audio/flac',
  m4a: 'audio/mp4',
  mkv: 'video/x-matroska',
  mov: 'video/quicktime',
  mp3: 'audio/mpeg',
  mp4: 'video/mp4',
  ogg: 'audio/ogg',
  opus: 'audio/ogg',
  wav: 'audio/wav',
  webm: 'video/webm',
};

/** A file that cannot be attached; the message says why, and what to do. */
export class AttachmentProblem extends Error {}

/**
 * @param {File} file
 * @param {AttachmentKind[]} kinds that are wanted
 * @param {number} maxPictureBytes of a picture's data URL
 * @returns {Promise<Attachment>}
 * @throws {AttachmentProblem}
 */
export async function attach(file, kinds, maxPictureBytes) {
  const name = file.name || 'pasted';
  const type = file.type || TYPE_BY_ENDING[name.split('.').pop()?.toLowerCase() ?? ''] || '';
  const kind = KIND_BY_TYPE[type.split('/')[0]];
  if (!kind || !kinds.includes(kind)) {
    throw new AttachmentProblem(`“${name}” cannot be attached: only ${wanted(kinds)} can.`);
  }
  if (file.size === 0) throw new AttachmentProblem(`“${name}” is empty.`);
  if (kind === 'picture') return { kind, name, url: await shrink(file, name, maxPictureBytes) };
  if (file.size > MAX_MEDIA_BYTES) {
    throw new AttachmentProblem(`“${name}” has ${megabytes(file.size)}; at most ${megabytes(MAX_MEDIA_BYTES)} can be attached. Cut it shorter.`);
  }
  return { kind, name, url: await asDataUrl(file, type) };
}

/** @param {AttachmentKind[]} kinds */
function wanted(kinds) {
  return kinds.map((kind) => PLURALS[kind]).join(', ').replace(/, (?=[^,]*$)/, ' and ');
}

/** @param {number} bytes */
export function megabytes(bytes) {
  return `${(bytes / 1_048_576).toFixed(bytes < 10_485_760 ? 1 : 0)} MB`;
}

/**
 * A picture as a JPEG that is small enough in every respect.
 * @param {File} file
 * @param {string} name
 * @param {number} maxBytes
 */
async function shrink(file, name, maxBytes) {
  if (file.size > MAX_PICTURE_BYTES) {
    throw new AttachmentProblem(`“${name}” has ${megabytes(file.size)}; at most ${megabytes(MAX_PICTURE_BYTES)} can be opened.`);
  }
  const bitmap = await open(file, name);
  try {
    for (const [share, quality] of STEPS) {
      const url = draw(bitmap, share, quality);
      if (url.length <= maxBytes) return url;
    }
  } finally {
    bitmap.close();
  }
  throw new AttachmentProblem(`“${name}” stays too large to be sent, however small it is made.`);
}

/**
 * @param {File} file
 * @param {string} name
 */
async function open(file, name) {
  try {
    return await createImageBitmap(file);
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    throw new AttachmentProblem(`“${name}” cannot be opened as a picture: use a JPEG, PNG or WebP file.`);
  }
}

/**
 * @param {ImageBitmap} bitmap
 * @param {number} share of the longest side that is allowed
 * @param {number} quality of the JPEG
 */
function draw(bitmap, share, quality) {
  const scale = Math.min(1, (MAX_SIDE_PX * share) / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement('canvas');
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext('2d');
  if (!context) throw new AttachmentProblem('This browser cannot draw pictures.');
  // What is transparent would turn black.
  context.fillStyle = '#fff';
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL('image/jpeg', quality);
}

/**
 * @param {File} file
 * @param {string} type
 * @returns {Promise<string>}
 */
function asDataUrl(file, type) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(new AttachmentProblem(`“${file.name}” cannot be read: is it still there?`));
    // With a type of our own, as the system may know none.
    reader.readAsDataURL(new Blob([file], { type }));
  });
}
