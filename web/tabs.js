// @ts-check
/**
 * "Call" and "Chat": tabs as assistive technology knows them, moved through by arrow keys.
 *
 *   #tabs               role=tablist, hidden where there is nothing to choose
 *   body[data-tab]      call | chat
 */

import { byId } from './stage.js';

/** @typedef {'call' | 'chat'} Tab */

/** @type {Tab[]} */
const TABS = ['call', 'chat'];

export class Tabs {
  #changed;

  /** @param {(tab: Tab) => void} changed */
  constructor(changed) {
    this.#changed = changed;
    for (const tab of TABS) {
      buttonOf(tab).addEventListener('click', () => this.open(tab));
      buttonOf(tab).addEventListener('keydown', (event) => this.#onKey(event, tab));
    }
    this.#show('call');
  }

  get current() {
    return /** @type {Tab} */ (document.body.dataset.tab);
  }

  /** @param {boolean} both whether there is a choice */
  offer(both) {
    byId('tabs').hidden = !both;
    if (!both) this.open('call');
  }

  /** @param {Tab} tab */
  open(tab) {
    if (tab === this.current) return;
    this.#show(tab);
    this.#changed(tab);
  }

  /** @param {Tab} tab */
  #show(tab) {
    document.body.dataset.tab = tab;
    for (const each of TABS) {
      const chosen = each === tab;
      buttonOf(each).setAttribute('aria-selected', String(chosen));
      buttonOf(each).tabIndex = chosen ? 0 : -1;
      byId(`${each}-panel`).hidden = !chosen;
    }
  }

  /**
   * @param {KeyboardEvent} event
   * @param {Tab} tab
   */
  #onKey(event, tab) {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -TABS.indexOf(tab), End: TABS.length - 1 - TABS.indexOf(tab) }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const next = TABS[(TABS.indexOf(tab) + step + TABS.length) % TABS.length];
    this.open(next);
    buttonOf(next).focus();
  }
}

/** @param {Tab} tab */
function buttonOf(tab) {
  return byId(`tab-${tab}`);
}
