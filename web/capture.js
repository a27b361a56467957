// @ts-check
/** What the browser lends for a call: microphone, camera, screen. No DOM. */

import { cameraProblem, CallProblem, microphoneProblem, screenProblem } from './problems.js';

/** @throws {CallProblem} insecure-context or browser-too-old */
export function requireBrowser() {
  if (typeof RTCPeerConnection === 'undefined') throw new CallProblem('browser-too-old');
  requireMicrophone();
}

/** @throws {CallProblem} insecure-context */
export function requireMicrophone() {
  if (!navigator.mediaDevices?.getUserMedia) throw new CallProblem('insecure-context');
}

/** Phones cannot, not even those whose browsers have a function for it, which then fails. */
export function canShareScreen() {
  const touchOnly = matchMedia('(hover: none) and (pointer: coarse)').matches && !matchMedia('(any-pointer: fine)').matches;
  return typeof navigator.mediaDevices?.getDisplayMedia === 'function' && !touchOnly;
}

/**
 * The browser's own echo canceller first: it knows the loudspeaker, the server only the network.
 * @param {string} [deviceId]
 */
export function openMicrophone(deviceId) {
  return openSound({ echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 }, deviceId);
}

/**
 * As it hears: what a browser does to a voice would be cloned with it.
 * @param {string} [deviceId]
 */
export function openRawMicrophone(deviceId) {
  return openSound({ echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 }, deviceId);
}

/**
 * @param {MediaTrackConstraints} audio
 * @param {string} [deviceId]
 */
async function openSound(audio, deviceId) {
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: deviceId ? { ...audio, deviceId } : audio });
  } catch (error) {
    throw microphoneProblem(error);
  }
}

/**
 * @param {string} [deviceId]
 * @param {boolean} [hd] as large as the model can look at when it looks closely: nine tiles
 */
export async function openCamera(deviceId, hd = false) {
  const size = hd ? { width: { ideal: 1280 }, height: { ideal: 960 } } : { width: { ideal: 640 }, height: { ideal: 480 } };
  const video = { ...size, frameRate: { ideal: 10 } };
  try {
    return await navigator.mediaDevices.getUserMedia({
      video: deviceId ? { ...video, deviceId } : { ...video, facingMode: 'user' },
    });
  } catch (error) {
    throw cameraProblem(error);
  }
}

/**
 * Call it within the press of a button: browsers open their picker for nothing else.
 * Five pictures a second, because the first one then comes sooner than at the rate that is sent.
 * @returns {Promise<MediaStream | null>} null where the user closed the picker
 */
export async function openScreen() {
  const video = { width: { max: 1920 }, height: { max: 1080 }, frameRate: { max: 5 } };
  try {
    return await navigator.mediaDevices.getDisplayMedia({ video, audio: false });
  } catch (error) {
    const problem = screenProblem(error);
    if (problem) throw problem;
    return null;
  }
}

/** @param {MediaStream | null | undefined} stream */
export function stop(stream) {
  for (const track of stream?.getTracks() ?? []) track.stop();
}
