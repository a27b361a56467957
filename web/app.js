// @ts-check
/**
 * The page: joins one Call after another to what is on the screen.
 *
 * What a test or a style may hold on to:
 *   #call-button        starts and ends a call; data-live = true | false
 *   #state              data-state = idle | connecting | listening | speaking | paused | ended | problem
 *   .stage              the same data-state; data-user = speaking while the server hears the user;
 *                       data-ducked = on while the agent holds its breath; data-picture = camera |
 *                       screen while it is shown; data-link = broken while the connection is;
 *                       data-muted = on while muted
 *   #hint               a line under the state: the length of the call, why it waits, or an alarm
 *   #mute #camera       aria-pressed = true while muted / while the camera is on; hidden outside a call
 *   #screen             aria-pressed = true while the screen is shared; hidden where that cannot be
 *   #pause #listen      aria-pressed = true while paused / while the agent was told to listen only
 *                       (.stage[data-listen = only]); Space, held, listens too
 *   #typing             what is typed and shown to the agent (composer.js); #settings (settings_card.js)
 *   #setting-voice      which voice speaks (voice_picker.js), #voice-dialog adds one (voice_dialog.js)
 *   #captions-only      shown where the engine has no voice
 *   #tabs               "Call" and "Chat" (tabs.js); #chat-log (chat_log.js), #chat-form, #thinking,
 *                       #chat-stop, #chat-new
 *   #self-view          <video> of what the agent is shown; data-source = camera | screen
 *   #captions           role=log; .line[data-speaker = agent | user][data-item-id], [data-interrupted],
 *                       [data-placeholder] where the user spoke and no transcript came (yet),
 *                       <s> around words that were cut off before they were heard
 *   #newest             leads back to the newest caption after scrolling up
 *   #mic-meter          role=meter, aria-valuenow = 0 to 100
 *   #microphone-select #speaker-select #camera-select, in <details id="devices">
 *   #shortcuts          checkbox: keys M (mute), V (camera), S (screen), P (pause), H (hang up), Space
 *   #agent-audio        <audio> with the agent's stream as srcObject: the only way out for sound
 *   #sound-button       shown where the browser refuses to play without a press
 *   #key-dialog         asks for a key, where the server has none for its own page (page_key.js)
 *   #problem            role=alert, data-problem = code (problems.js) or '' ; #problem-action its button
 *   #details            <details> of checks: #checks li[data-check][data-verdict = waiting | ok | warning | failing]
 *   #engine             data-engine = id of the engine that answers; #echo-notice shown for `echo`
 *   body                data-view = idle until the first call, then call
 * Keep `applyServerEvent` (below) for driving the page without a server.
 */

import { Call } from './call.js';
import { Captions, clock } from './captions.js';
import { canShareScreen } from './capture.js';
import { Chat } from './chat.js';
import { Clockwork } from './clockwork.js';
import { DevicePickers } from './device_pickers.js';
import { recall, remember, rememberDevice, rememberedDevice } from './devices.js';
import { captionsOnly, showEngine } from './engine.js';
import { FloorButtons, SpaceBar } from './floor_buttons.js';
import { askForKey } from './key_dialog.js';
import { meterShare, MicrophoneMeter } from './meter.js';
import { PageKey } from './page_key.js';
import { Preflight, showRows, summary } from './preflight.js';
import { Choices } from './settings.js';
import { SettingsCard } from './settings_card.js';
import { byId, ProblemCard, Stage } from './stage.js';
import { Tabs } from './tabs.js';
import { Typing } from './typing.js';
import { VoicePicker } from './voice_picker.js';
import { WakeLock } from './wake_lock.js';

const BASE_URL = document.baseURI;

const stage = new Stage();
const problemCard = new ProblemCard(() => startCall());
const captions = new Captions(byId('captions'), byId('newest'));
const wakeLock = new WakeLock();
const audio = /** @type {HTMLAudioElement} */ (byId('agent-audio'));
const selfView = /** @type {HTMLVideoElement} */ (byId('self-view'));
const soundButton = byId('sound-button');
const shortcuts = /** @type {HTMLInputElement} */ (byId('shortcuts'));

const devices = new DevicePickers({
  audioinput: (deviceId) => call.setMicrophone(deviceId),
  audiooutput: (deviceId) => useLoudspeaker(deviceId),
  videoinput: (deviceId) => call.setCamera(call.cameraOn, deviceId),
});

export const pageKey = new PageKey(BASE_URL, (wrong) => askForKey(wrong, () => byId('engine').dataset.engine || prepareEngine()));
let call = newCall();
const choices = new Choices();
const settingsCard = new SettingsCard(choices, (event, onRefused) => call.send(event, onRefused), (id) => voicePicker.refresh(id));
const voicePicker = new VoicePicker(choices, settingsCard, BASE_URL, () => call.live, () => chat.hush(), pageKey);
const floorButtons = new FloorButtons(byId('pause'), byId('listen'), () => call, (only) => stage.listensOnly(only));
const typing = new Typing(
  /** @type {HTMLFormElement} */ (byId('typing')),
  captionsCard(),
  () => call,
  (itemId, picture) => captions.addPicture(itemId, picture, sinceStart()),
);
const chat = new Chat(call.signalling.chatUrl, choices, pageKey);
const tabs = new Tabs((tab) => onTab(tab));
const clockwork = new Clockwork(onRepaint, onSecond);
let meter = /** @type {MicrophoneMeter | null} */ (null);
let preflight = new Preflight(0);
let startedMs = 0;
/** The engine has no voice. */
let mute = false;
let endedMs = 0;
/** Why the line under the state says something else than the time; '' if it need not. */
let waiting = '';
/** The connection is, and is being waited for. */
let broken = false;
/** What the captions show was said in the call before. */
let captionsAreOld = false;

// ---- calls --------------------------------------------------------------------------------------

function newCall() {
  const made = new Call(BASE_URL, {}, pageKey);
  const on = (/** @type {string} */ type, /** @type {(detail: any) => void} */ react) =>
    made.addEventListener(type, (event) => react(/** @type {CustomEvent} */ (event).detail));
  on('state', (state) => onState(state));
  on('problem', (problem) => problemCard.show(problem, made.live));
  // Perhaps because the voice that was asked for is gone.
  on('problem', ({ code }) => code === 'call-refused' && voicePicker.refresh());
  on('serverevent', (event) => onServerEvent(event));
  on('sound', (stream) => play(stream));
  on('microphone', (stream) => onMicrophone(stream));
  on('picture', (picture) => onPicture(picture));
  on('muted', (muted) => onMuted(muted));
  on('link', (whole) => onLink(whole));
  on('statistics', (statistics) => preflight.statistics(statistics));
  return made;
}

function startCall() {
  problemCard.hide();
  // A call that never comes about shall not cost the last one's words.
  captionsAreOld = true;
  stage.muted(false);
  waiting = '';
  broken = false;
  document.body.dataset.view = 'call';
  captionsCard().hidden = false;
  byId('echo-notice').removeAttribute('open');
  startedMs = performance.now();
  preflight = new Preflight(startedMs, mute);
  showChecks();
  if (call.state !== 'idle') call = newCall();
  void call.start({
    microphoneId: rememberedDevice('audioinput'),
    cameraId: rememberedDevice('videoinput'),
    session: choices.opening(),
    hd: () => choices.value('max_slices') > 1,
  });
}

/** @param {import('./call.js').State} state */
function onState(state) {
  if (call.talking) dropOldCaptions();
  if (state === 'listening') void devices.refresh();
  if (call.live) void wakeLock.hold();
  else endCall();
  clockwork.run(call.live);
  stage.show(state, sinceStart(), call.writing, call.endedByServer);
  floorButtons.callChanged();
  typing.callChanged();
  voicePicker.callChanged();
  byId('tab-call').textContent = call.live ? 'Call (on)' : 'Call';
  chat.block(call.live ? 'Your call has the model: hang up to chat.' : '');
}

/** @param {boolean} whole */
function onLink(whole) {
  broken = !whole;
  stage.reconnecting(broken);
  showHint();
}

function dropOldCaptions() {
  if (captionsAreOld) captions.clear();
  captionsAreOld = false;
}

function endCall() {
  endedMs = performance.now();
  void wakeLock.release();
  void meter?.close();
  meter = null;
  audio.srcObject = null;
  soundButton.hidden = true;
  problemCard.callEnded();
  settingsCard.callEnded();
  showChecks();
}

function sinceStart() {
  return (call.live ? performance.now() : endedMs) - startedMs;
}

// ---- what the server says -----------------------------------------------------------------------

/**
 * Take in a server event as if it had come over the data channel.
 * @param {{type: string} & Record<string, unknown>} event
 */
export function applyServerEvent(event) {
  call.applyServerEvent(event);
}

/** @type {Record<string, string>} */
const WAITS = {
  paused: 'The agent hears nothing until you resume.',
  queued: 'Waiting for a free place…',
};

/** @param {any} event */
function onServerEvent(event) {
  dropOldCaptions();
  captions.apply(event, sinceStart());
  preflight.apply(event);
  settingsCard.apply(event);
  voicePicker.apply(event);
  typing.apply(event);
  if (event.type === 'input_audio_buffer.speech_started') stage.userSpeaking(true);
  else if (event.type === 'input_audio_buffer.speech_stopped') stage.userSpeaking(false);
  else if (event.type === 'voice_agent.ducked') stage.ducked(call.state === 'speaking');
  else if (event.type === 'voice_agent.resumed') stage.ducked(false);
  else if (event.type === 'conversation.item.truncated') call.retrieve(event.item_id);
  else if (event.type === 'voice_agent.state') showWaiting(WAITS[event.state] ?? '');
  // Said to a page without a call, whose clockwork stands.
  if (!call.live) showChecks();
}

// ---- sound and picture --------------------------------------------------------------------------

/** @param {MediaStream} stream */
async function play(stream) {
  audio.srcObject = stream;
  await useLoudspeaker(rememberedDevice('audiooutput'));
  await tryToPlay();
}

async function tryToPlay() {
  try {
    await audio.play();
    soundButton.hidden = true;
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    // AbortError is a call that ended meanwhile; NotAllowedError wants a press.
    soundButton.hidden = error.name !== 'NotAllowedError';
  }
}

/** @param {string} deviceId '' is the system's default */
async function useLoudspeaker(deviceId) {
  if (!('setSinkId' in audio)) return;
  try {
    await audio.setSinkId(deviceId);
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    // Unplugged since it was chosen: the system's default plays on.
    rememberDevice('audiooutput', '');
    void devices.refresh();
  }
}

/** @param {MediaStream} stream */
function onMicrophone(stream) {
  meter ??= new MicrophoneMeter();
  meter.listen(stream);
  preflight.microphoneChanged();
}

/** @param {boolean} muted */
function onMuted(muted) {
  stage.muted(muted);
  preflight.muted(muted);
}

/** @type {Record<import('./pictures.js').PictureSource, string>} */
const SELF_VIEWS = { camera: 'Your camera’s picture', screen: 'Your screen, as the agent sees it' };

/** @param {import('./pictures.js').Picture | null} picture */
function onPicture(picture) {
  const source = picture?.source ?? null;
  selfView.srcObject = picture?.stream ?? null;
  selfView.hidden = picture === null;
  selfView.dataset.source = source ?? '';
  selfView.setAttribute('aria-label', source ? SELF_VIEWS[source] : '');
  stage.picture(source);
  preflight.picture(source);
  if (source === 'camera') void devices.refresh();
}

// ---- which engine answers -----------------------------------------------------------------------

async function prepareEngine() {
  const engine = await showEngine(call.signalling);
  if (!engine) return;
  mute = captionsOnly(engine);
  settingsCard.useEngine(engine);
  voicePicker.useEngine(engine);
  typing.useEngine(engine.abilities);
  chat.useEngine(engine);
  tabs.offer(engine.abilities.chat === true && engine.mayChat);
}

/** @param {import('./tabs.js').Tab} tab */
function onTab(tab) {
  floorButtons.listen(false);
  if (tab === 'chat') problemCard.hide();
}

// ---- the page's own clockwork -------------------------------------------------------------------

function captionsCard() {
  return /** @type {HTMLElement} */ (byId('captions').closest('section'));
}

/** @param {number} nowMs */
function onRepaint(nowMs) {
  if (!meter) return;
  const levelDb = call.muted ? -Infinity : meter.levelDb();
  preflight.microphoneLevel(levelDb);
  stage.levels(meterShare(levelDb), call.agentLevel(), nowMs);
}

function onSecond() {
  if (call.talking) {
    preflight.tick(performance.now());
    showHint();
  }
  showChecks();
}

/** @param {string} text why the line under the state says something else than the time */
function showWaiting(text) {
  waiting = text;
  showHint();
}

function showHint() {
  const lost = broken ? 'The connection broke: waiting for it to come back…' : '';
  if (call.talking) stage.hint(lost || waiting || preflight.alarm() || clock(sinceStart()));
}

function showChecks() {
  const rows = preflight.rows();
  showRows(byId('checks'), rows);
  byId('details-summary').textContent = document.body.dataset.view === 'call' ? summary(rows) : '';
}

function pressCall() {
  if (call.live) call.hangUp();
  else startCall();
}

/** @type {Record<string, () => void>} */
const KEYS = {
  m: () => call.setMuted(!call.muted),
  v: () => void call.setCamera(!call.cameraOn),
  s: () => void (canShareScreen() && call.setScreen(!call.screenOn)),
  p: () => floorButtons.togglePause(),
  h: () => call.hangUp(),
};

/** Whether single keys mean something now: within a dialog they do not. */
function keysAreMeant() {
  return shortcuts.checked && call.talking && tabs.current === 'call' && !document.querySelector('dialog[open]');
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  const typing = event.target instanceof Element && event.target.closest('input, select, textarea');
  if (!keysAreMeant() || typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  KEYS[event.key.toLowerCase()]?.();
}

/**
 * A file that is dropped beside a field would be opened instead of the page, and end the call.
 * @param {DragEvent} event
 */
function keepPage(event) {
  if (event.dataTransfer?.types.includes('Files')) event.preventDefault();
}

function onVisible() {
  if (document.visibilityState !== 'visible' || !call.live) return;
  void call.reviveMicrophone();
  void wakeLock.hold();
}

byId('call-button').addEventListener('click', pressCall);
byId('mute').addEventListener('click', KEYS.m);
byId('camera').addEventListener('click', KEYS.v);
byId('screen').addEventListener('click', KEYS.s);
soundButton.addEventListener('click', tryToPlay);
document.addEventListener('keydown', onKey);
document.addEventListener('visibilitychange', onVisible);
window.addEventListener('pagehide', () => call.hangUp());
shortcuts.checked = recall('shortcuts') !== 'off';
shortcuts.addEventListener('change', () => remember('shortcuts', shortcuts.checked ? 'on' : 'off'));
byId('setting-max_slices').addEventListener('change', () => call.cameraOn && call.setCamera(true));
for (const type of /** @type {const} */ (['dragover', 'drop'])) document.addEventListener(type, keepPage);
showChecks();
new SpaceBar((held) => floorButtons.listen(held), keysAreMeant);
void prepareEngine();
