-- For wrk: each request comes from a visitor drawn at random, named by X-Forwarded-For as a proxy would.
-- VISITORS how many there are, DISTRIBUTION uniform or zipf, SEED.

local visitors = tonumber(os.getenv("VISITORS"))
local zipf = os.getenv("DISTRIBUTION") == "zipf"
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
	local n
	if zipf then
		-- The inverse of Zipf's distribution with exponent 1, as if it were continuous. The factor, a prime,
		-- scatters the frequent visitors over the table.
		n = (floor((visitors + 1) ^ random()) - 1) * 7368787 % visitors
	else
		n = random(0, visitors - 1)
	end
	return before .. format("%d.%d.%d\r\n\r\n", floor(n / 65536), floor(n / 256) % 256, n % 256)
end

function done(summary)
	local failed = summary.errors
	io.write(format('{"requests":%d,"microseconds":%d,"refused":%d,"broken":%d}\n', summary.requests, summary.duration,
		failed.status, failed.connect + failed.read + failed.write + failed.timeout))
end
