// Judges pages in Chromium with axe-core, html-validate and Lighthouse: each problem is a line.
//
//	node judge.mjs /usr/bin/chromium axe https://count.test/ …
import axe from 'axe-core';
import { HtmlValidate } from 'html-validate';
import lighthouse, { desktopConfig } from 'lighthouse';
import { launch } from './launch.mjs';

const [executablePath, tool, ...urls] = process.argv.slice(2);
const browser = await launch('chrome', executablePath);

// Both themes, a telephone and a desk. WCAG 2.2 to AAA, as far as a program can tell.
async function withAxe(url) {
	const page = await browser.newPage();
	for (const scheme of ['light', 'dark']) {
		for (const width of [360, 1280]) {
			await page.setViewport({ width, height: 900 });
			await page.emulateMediaFeatures([
				{ name: 'prefers-color-scheme', value: scheme },
				{ name: 'prefers-reduced-motion', value: 'reduce' },
			]);
			await page.goto(url);
			await page.evaluate(axe.source);
			const { violations } = await page.evaluate(() =>
				axe.run({ rules: Object.fromEntries(axe.getRules().map(({ ruleId }) => [ruleId, { enabled: true }])) }),
			);
			for (const { id, help, nodes } of violations) console.log(`axe, ${scheme}, ${width} px: ${url}: ${id}: ${help}: ${nodes.map((n) => n.html).join(' ')}`);
		}
	}
	await page.close();
}

// As the browser has parsed it, since html-validate knows few of the tags that HTML lets out.
async function withHtmlValidate(url) {
	const page = await browser.newPage();
	await page.goto(url);
	const { results } = await new HtmlValidate({ extends: ['html-validate:recommended'] }).validateString(await page.content());
	for (const { messages } of results) for (const { ruleId, message, line } of messages) console.log(`html-validate: ${url}: line ${line}: ${ruleId}: ${message}`);
	await page.close();
}

// What else the machine does can only cost points, so the best of some runs counts. Nor is the processor
// slowed down to a telephone's: the page has no script, and a busy machine is slow already.
async function withLighthouse(url) {
	const flags = { logLevel: 'silent', emulatedUserAgent: false, throttling: { cpuSlowdownMultiplier: 1 } };
	const page = await browser.newPage();
	for (const [name, config] of [['mobile'], ['desktop', desktopConfig]]) {
		const best = {};
		let weight, failed;
		for (let run = 0; run < 5 && Object.values(best).filter((score) => score === 100).length < 4; run++) {
			const { lhr } = await lighthouse(url, flags, config, page);
			if (lhr.runtimeError) { // "Please run Lighthouse again"
				failed = lhr.runtimeError;
				continue;
			}
			weight = lhr.audits['total-byte-weight'].numericValue;
			for (const { id, score, auditRefs } of Object.values(lhr.categories)) {
				if (score * 100 <= (best[id] ?? -1)) continue;
				best[id] = Math.round(score * 100);
				for (const { id: audit, weight } of auditRefs) {
					if (weight && lhr.audits[audit].score < 1) console.error(`${name}: ${url}: ${id} ${best[id]}: ${lhr.audits[audit].title} ${lhr.audits[audit].displayValue ?? ''}`);
				}
			}
		}
		if (weight === undefined) throw new Error(failed.message);
		console.error(`${name}: ${url}: ${JSON.stringify(best)}, ${weight} bytes`);
		for (const [id, score] of Object.entries(best)) if (score < 100) console.log(`Lighthouse, ${name}: ${url}: ${id} is ${score}`);
		if (weight > 25 << 10) console.log(`Lighthouse, ${name}: ${url}: ${weight} bytes`);
	}
	await page.close();
}

for (const url of urls) await { axe: withAxe, 'html-validate': withHtmlValidate, lighthouse: withLighthouse }[tool](url);
await browser.close();
