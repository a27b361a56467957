/* How the pages read what they are told and tell what happened; their microphone and what they
   hear. The program that opened the page has put `told` and `kept` into the window. */

import { fromBase64, journey, RATE_HZ, toBase64 } from './scenario.mjs';

const WIRE_PER_MS = 48;

/** A microphone of sounds made here; between them it is silent. */
export class MadeMicrophone {
  #context = new AudioContext();
  #out = this.#context.createMediaStreamDestination();
  #playing = 0;

  constructor() {
    // A source that never ends keeps the track alive in silence.
    const hum = this.#context.createConstantSource();
    hum.offset.value = 0;
    hum.connect(this.#out);
    hum.start();
  }

  get stream() {
    return this.#out.stream;
  }

  get speaking() {
    return this.#playing > 0;
  }

  /** `sound` is PCM16, 24 kHz, mono. */
  say(sound) {
    const samples = new Int16Array(sound.buffer, sound.byteOffset, sound.length / 2);
    const buffer = this.#context.createBuffer(1, samples.length, RATE_HZ);
    buffer.copyToChannel(Float32Array.from(samples, (sample) => sample / 32768), 0);
    const source = this.#context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.#out);
    this.#playing += 1;
    source.onended = () => {
      this.#playing -= 1;
    };
    source.start();
  }
}

/** Keeps what an audio element or a stream plays, as PCM16 at 24 kHz. */
export class Ear {
  #context = new AudioContext({ sampleRate: RATE_HZ });
  #pieces = [];

  listen(stream) {
    const source = this.#context.createMediaStreamSource(stream);
    const tap = this.#context.createScriptProcessor(4096, 1, 1);
    tap.onaudioprocess = ({ inputBuffer }) => {
      this.#pieces.push(Float32Array.from(inputBuffer.getChannelData(0)));
    };
    source.connect(tap);
    tap.connect(this.#context.destination);
  }

  get heardMs() {
    return this.#pieces.length * (4096 / RATE_HZ) * 1000;
  }

  /** How loud the last `ms` were, in dB of full scale. */
  levelDb(ms) {
    const count = Math.ceil((ms / 1000) * (RATE_HZ / 4096));
    const pieces = this.#pieces.slice(-count);
    const squares = pieces.map((piece) => piece.reduce((sum, each) => sum + each * each, 0));
    const power = squares.reduce((sum, each) => sum + each, 0) / (pieces.length * 4096 || 1);
    return 10 * Math.log10(power + 1e-12);
  }

  sound() {
    const all = new Int16Array(this.#pieces.length * 4096);
    this.#pieces.forEach((piece, at) => {
      all.set(
        piece.map((sample) => Math.max(-32768, Math.min(32767, sample * 32768))),
        at * 4096,
      );
    });
    return new Uint8Array(all.buffer);
  }
}

/** How much sound came out of the jitter buffer of `peer`, in ms. */
export class SoundMeter {
  ms = 0;
  #timer;

  constructor(peer) {
    this.#timer = setInterval(async () => {
      for (const report of (await peer.getStats()).values()) {
        if (report.type === 'inbound-rtp' && report.kind === 'audio') {
          this.ms = (report.jitterBufferEmittedCount ?? 0) / WIRE_PER_MS;
        }
      }
      if (peer.connectionState === 'closed') clearInterval(this.#timer);
    }, 50);
  }
}

export const given = {
  ...window.given,
  speech: fromBase64(window.given.speech),
};

export const way = {
  tell: (line) => window.told(JSON.stringify(line)),
  keep: (name, text) => window.kept(name, text),
  keepSound: (name, sound) => window.kept(name, toBase64(sound)),
};

/** Run the journey, then say that the page is done with. */
export async function go(make) {
  await journey(make(given), way);
  await window.done();
}
