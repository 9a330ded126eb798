-- For wrk: each request comes from a visitor drawn at random, named by X-Forwarded-For as a proxy would.
-- VISITORS how many there are, SEED.

local visitors = tonumber(os.getenv("VISITORS"))
local before = "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: Mozilla/5.0\r\nX-Forwarded-For: 10."
local format, floor, random = string.format, math.floor, math.random

local threads = 0

function setup(thread)
	thread:set("number", threads)
	threads = threads + 1
end

function init()
	math.randomseed(tonumber(os.getenv("SEED")) + number)
end

function request()
	local n = random(0, visitors - 1)
	return before .. format("%d.%d.%d\r\n\r\n", floor(n / 65536), floor(n / 256) % 256, n % 256)
end

function done(summary, latency)
	local failed = summary.errors
	io.write(format('{"requests":%d,"microseconds":%d,"refused":%d,"broken":%d,"p50":%d,"p99":%d}\n', summary.requests, summary.duration,
		failed.status, failed.connect + failed.read + failed.write + failed.timeout, latency:percentile(50), latency:percentile(99)))
end
