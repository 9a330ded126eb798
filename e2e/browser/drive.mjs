// Drives one browser as a person does. A line of JSON on standard input says what to do, a line of JSON on standard
// output says what the person then sees:
//
//	node drive.mjs chrome /usr/bin/chromium
//	{"open": "https://count.test/"}
//	{"seen": "You are visitor 1. …"}
import { createInterface } from 'node:readline';
import { launch } from './launch.mjs';

const browser = await launch(...process.argv.slice(2));
let [page] = await browser.pages();
let viewport = null;

const actions = {
	// In a tab of its own: Firefox does not always report that it has left a page whose sandboxed frame it refused to show.
	async open(url) {
		const left = page;
		page = await browser.newPage();
		page.setDefaultTimeout(60_000); // of a busy machine
		await page.setViewport(viewport);
		await page.goto(url, { waitUntil: 'domcontentloaded' });
		await left.close();
	},
	reload: () => page.reload({ waitUntil: 'domcontentloaded' }),
	click: (selector) => page.click(selector),
	look() {},
	width(width) {
		viewport = { width, height: 900 };
	},
	picture: (path) => page.screenshot({ path, fullPage: true }),
};

// What is on the screen, and by how many pixels it is wider. A page that is just being left cannot be asked.
async function screen() {
	try {
		return await page.evaluate(() => ({
			seen: document.readyState === 'complete' ? document.body.innerText : '',
			over: document.documentElement.scrollWidth - innerWidth,
		}));
	} catch {
		return { seen: '' };
	}
}

for await (const line of createInterface({ input: process.stdin })) {
	let answer;
	try {
		for (const [action, value] of Object.entries(JSON.parse(line))) await actions[action](value);
		answer = await screen();
	} catch (error) {
		answer = { error: String(error.stack) };
	}
	console.log(JSON.stringify(answer));
}
await browser.close();
