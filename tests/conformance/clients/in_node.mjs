/* How the programs for Node read what they are told and tell what happened. */

import { appendFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { journey, RATE_HZ } from './scenario.mjs';

const WAV_HEADER_BYTES = 44;

function read() {
  const text = { type: 'string' };
  const { values } = parseArgs({
    options: { base: text, key: text, speech: text, picture: text, out: text },
  });
  const picture = readFileSync(values.picture).toString('base64');
  return {
    ...values,
    speech: readFileSync(values.speech).subarray(WAV_HEADER_BYTES),
    picture: `data:image/png;base64,${picture}`,
  };
}

function wav(sound) {
  const file = Buffer.alloc(WAV_HEADER_BYTES + sound.length);
  file.write('RIFF', 0);
  file.writeUInt32LE(36 + sound.length, 4);
  file.write('WAVEfmt ', 8);
  file.writeUInt32LE(16, 16);
  file.writeUInt16LE(1, 20); // PCM
  file.writeUInt16LE(1, 22); // mono
  file.writeUInt32LE(RATE_HZ, 24);
  file.writeUInt32LE(RATE_HZ * 2, 28);
  file.writeUInt16LE(2, 32);
  file.writeUInt16LE(16, 34);
  file.write('data', 36);
  file.writeUInt32LE(sound.length, 40);
  file.set(sound, WAV_HEADER_BYTES);
  return file;
}

/** Run the journey with the client that `make` makes of what the program was told. */
export async function go(make) {
  const given = read();
  const way = {
    tell: (line) => appendFileSync(1, `${JSON.stringify(line)}\n`),
    keep: (name, text) => writeFileSync(join(given.out, name), text),
    keepSound: (name, sound) => writeFileSync(join(given.out, name), wav(sound)),
  };
  process.on('unhandledRejection', (error) => {
    way.tell({ feature: 'close', error: `unhandled: ${error?.stack ?? error}` });
  });
  await journey(make(given), way);
  process.exit(0);
}
