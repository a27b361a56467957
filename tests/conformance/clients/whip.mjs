/* npm `@binbat/whip-whep` in a browser: a WHIP client, which has sound and pictures and nothing else.

   It hears the agent because its microphone goes both ways. What cannot be heard, how the answer
   was cut and what it says, the program that opened the page learns over a sideband. */

import { WHIPClient } from './node_modules/@binbat/whip-whep/whip.js';

import { Ear, given, MadeMicrophone, SoundMeter, way } from './in_browser.mjs';
import { sleep } from './scenario.mjs';

const LOUD_DB = -45;
const LISTEN_MS = 350;
const PATIENCE_MS = 20000;
const HEARD_BEFORE_MS = 1800;

const microphone = new MadeMicrophone();
const scene = document.querySelector('#scene');
const faults = [];
let ear = new Ear();
let client;
let peer;
let meter;

async function until(met, what) {
  const due = performance.now() + PATIENCE_MS;
  while (!(await met())) {
    if (performance.now() > due) throw new Error(`no ${what} within ${PATIENCE_MS} ms`);
    await sleep(40);
  }
}

const loud = () => ear.levelDb(LISTEN_MS) > LOUD_DB;
const callId = () => client.resourceURL.pathname.split('/').pop();

async function publish() {
  peer = new RTCPeerConnection();
  meter = new SoundMeter(peer);
  ear = new Ear();
  const voice = document.querySelector('#voice');
  peer.ontrack = ({ track, streams }) => {
    voice.srcObject = streams[0] ?? new MediaStream([track]);
    ear.listen(voice.srcObject);
  };
  const [track] = microphone.stream.getAudioTracks();
  peer.addTransceiver(track, { direction: 'sendrecv', streams: [microphone.stream] });
  const [camera] = scene.captureStream(5).getVideoTracks();
  peer.addTransceiver(camera, { direction: 'sendonly' });
  client = new WHIPClient();
  await client.publish(peer, `${given.base}/v1/realtime/calls`, given.key);
  await until(() => peer.connectionState === 'connected', 'connection');
}

/** Leave, once what is under way has arrived: this client does not wait for it by itself. */
async function leave() {
  await until(() => peer.iceGatheringState === 'complete', 'end of gathering');
  await sleep(LISTEN_MS);
  await client.stop();
}

/** A picture that changes, so that there is always one to send. */
function paint() {
  const brush = scene.getContext('2d');
  let shade = 0;
  setInterval(() => {
    shade = (shade + 16) % 256;
    brush.fillStyle = `rgb(${shade}, 120, 90)`;
    brush.fillRect(0, 0, scene.width, scene.height);
  }, 100);
}

const STEPS = {
  async connect() {
    const began = performance.now();
    await publish();
    const takenS = Math.round(performance.now() - began) / 1000;
    await window.follow(callId());
    return { connect: { session: callId(), taken_s: takenS } };
  },

  /** The greeting falls silent when it is talked over. */
  async interrupt() {
    await until(loud, 'greeting');
    const began = meter.ms;
    await until(() => meter.ms > began + HEARD_BEFORE_MS, 'more of the greeting');
    microphone.say(given.speech);
    await until(() => !loud(), 'silence');
    const stoppedMs = Math.round(meter.ms - began);
    return { interrupt: await window.followed('interrupt', stoppedMs) };
  },

  async answered() {
    await until(() => !microphone.speaking, "end of the user's speech");
    await until(loud, 'answer');
    await until(() => !loud(), 'end of the answer');
    await sleep(LISTEN_MS);
    await way.keepSound('heard.wav', ear.sound());
    const answered = await window.followed('answered', -1);
    const talk = { user_turns: answered.user_turns };
    return { talk, answered, picture: { said: answered.text } };
  },

  /** New ways for the call that there is, and then a call of its own. */
  async reconnect() {
    const before = callId();
    await client.restart();
    await until(() => peer.iceConnectionState === 'connected', 'new ways');
    await leave();
    await until(() => window.gone(before), 'end of the first call');
    await publish();
    await until(loud, 'second greeting');
    return { reconnect: { before, after: callId() } };
  },

  async close() {
    await leave();
    return { close: { faults } };
  },
};

window.addEventListener('unhandledrejection', ({ reason }) => faults.push(`${reason}`));
paint();
for (const [feature, step] of Object.entries(STEPS)) {
  try {
    for (const [name, facts] of Object.entries(await step())) {
      await way.tell({ feature: name, facts });
    }
  } catch (error) {
    await way.tell({ feature, error: `${error?.stack ?? error}` });
    if (feature === 'connect') break;
  }
}
await window.done();
