// @ts-check
/**
 * What a model wrote, as text and nothing but text: line breaks kept, fenced code in a box of its own.
 * No mark-up of it ever becomes an element of the page.
 */

/** A fence at the beginning of a line, with the language it may name. */
const FENCE = /^ {0,3}```([^\n`]*)$/;

/** @typedef {{code: boolean, text: string}} Block */

/**
 * Cut at the fences; one that is still open reaches to the end.
 * @param {string} text
 * @returns {Block[]} none of them empty
 */
export function blocks(text) {
  /** @type {Block[]} */
  const found = [];
  let code = false;
  /** @type {string[]} */
  let lines = [];
  const close = () => {
    const block = lines.join('\n').replace(/^\n+|\s+$/g, '');
    if (block) found.push({ code, text: block });
    lines = [];
  };
  for (const line of text.split('\n')) {
    const fence = FENCE.exec(line);
    // Within code, only a bare fence ends it.
    if (fence && (!code || !fence[1].trim())) {
      close();
      code = !code;
    } else lines.push(line);
  }
  close();
  return found;
}

/**
 * Show a text that grows: only what changed is written.
 * @param {HTMLElement} root
 * @param {string} text
 */
export function showProse(root, text) {
  const wanted = blocks(text);
  wanted.forEach((block, index) => {
    const there = root.children[index];
    const fits = there && there.tagName === (block.code ? 'PRE' : 'P');
    const element = fits ? there : make(block.code);
    if (!there) root.append(element);
    else if (!fits) there.replaceWith(element);
    const place = element.firstElementChild ?? element;
    if (place.textContent !== block.text) place.textContent = block.text;
  });
  while (root.children.length > wanted.length) root.lastElementChild?.remove();
}

/** @param {boolean} code */
function make(code) {
  if (!code) return document.createElement('p');
  const box = document.createElement('pre');
  // Long lines scroll, by keyboard too.
  box.tabIndex = 0;
  box.append(document.createElement('code'));
  return box;
}
