import puppeteer from 'puppeteer-core';

// Starts a browser in which every name that ends in .test is this machine, whatever its certificate, and no
// other name is anywhere.
export function launch(browser, executablePath) {
	return puppeteer.launch({
		browser,
		executablePath,
		headless: true,
		acceptInsecureCerts: true,
		timeout: 300_000, // of a busy machine
		// Chromium only: puppeteer's own arguments switch off what fetches ahead, and headless Chromium
		// identifies itself as a program.
		...(browser === 'chrome' && {
			ignoreDefaultArgs: true,
			args: [
				'--headless=new', '--no-sandbox', '--remote-debugging-port=0', '--no-first-run', '--disable-sync', '--disable-component-update', '--disable-quic',
				'--hide-scrollbars', '--ignore-certificate-errors', '--host-resolver-rules=MAP *.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
				'--user-agent=Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36',
			],
		}),
		extraPrefsFirefox: {
			'network.dns.localDomains': 'count.test,www.count.test,first.test,bot.test,away.test,others.test',
			'network.prefetch-next': true, // puppeteer switches it off
		},
	});
}
