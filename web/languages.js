// @ts-check
/** What is written in the language of a voice: its name, a text to read aloud, a sample. No DOM. */

/** What its speakers call it. @param {string} language */
export function languageName(language) {
  try {
    return new Intl.DisplayNames([language], { type: 'language' }).of(language) ?? language;
  } catch (error) {
    if (error instanceof RangeError) return language;
    throw error;
  }
}

/** Ten to fourteen seconds, read calmly: statements, a question, most sounds of the language. @type {Record<string, string>} */
const READINGS = {
  en: 'Last autumn we walked along the river until the lights came on. Do you remember how quiet it was? Just two boats, a few birds, and the smell of fresh bread from across the water.',
  zh: '去年秋天，我们沿着河边散步，一直走到路灯亮起来。你还记得那时有多安静吗？只有两条小船、几只鸟，还有对岸飘来的新鲜面包的香味。',
  de: 'Letzten Herbst gingen wir am Fluss entlang, bis die Lichter angingen. Weißt du noch, wie still es war? Nur zwei Boote, ein paar Vögel und der Duft von frischem Brot über dem Wasser.',
  fr: 'L’automne dernier, nous avons marché le long du fleuve jusqu’à la tombée du jour. Tu te souviens de ce calme ? Juste deux bateaux, quelques oiseaux et une odeur de pain chaud.',
  es: 'El otoño pasado caminamos junto al río hasta que se encendieron las luces. ¿Recuerdas qué tranquilo estaba? Solo dos barcos, unos pájaros y el olor a pan recién hecho.',
  ja: '去年の秋、明かりがともるまで川沿いを歩きました。どんなに静かだったか覚えていますか。小さな船が二つ、鳥が何羽か、そして焼きたてのパンの香りだけでした。',
  ko: '지난가을 우리는 불이 켜질 때까지 강가를 걸었습니다. 얼마나 조용했는지 기억나세요? 작은 배 두 척과 새 몇 마리, 그리고 갓 구운 빵 냄새뿐이었지요.',
};

const READ_ANYTHING =
  'Speak calmly in your language for about ten seconds: tell what you see from your window, and ask a question at the end.';

/** @type {Record<string, string>} */
const SAMPLES = {
  en: 'Hello! This is what I sound like. What would you like to talk about?',
  zh: '你好，这就是我的声音。你想聊点什么呢？',
  de: 'Hallo! So klinge ich. Worüber möchtest du sprechen?',
  fr: 'Bonjour ! Voici ma voix. De quoi veux-tu parler ?',
  es: '¡Hola! Así suena mi voz. ¿De qué quieres hablar?',
  ja: 'こんにちは。これが私の声です。何について話しましょうか。',
  ko: '안녕하세요. 제 목소리는 이렇습니다. 무슨 이야기를 할까요?',
};

/**
 * A text to read aloud, and the language that it is written in.
 * @param {string} language '' where it is none that is known here
 * @returns {{text: string, language: string}}
 */
export function reading(language) {
  const text = READINGS[baseOf(language)];
  return text ? { text, language } : { text: READ_ANYTHING, language: 'en' };
}

/**
 * What a voice says of itself.
 * @param {string} language
 */
export function sample(language) {
  return SAMPLES[baseOf(language)] ?? SAMPLES.en;
}

/** @param {string} language */
function baseOf(language) {
  return language.toLowerCase().split('-')[0];
}
