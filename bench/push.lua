-- Distinct push requests for wrk, cheaply: everything is a constant but fifteen digits.
--
-- The digits are round (100..999), thread (000..999) and a counter of nine digits. Every run of them in the JSON begins
-- at a multiple of three bytes, so three digits are four characters of base64, looked up in a table: no encoder runs.
--
--   wrk ... -s push.lua URL -- ROUND      ROUND: 0 to 899, another one for each run against the same store

local ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

local function base64(text)
  local out = {}
  for i = 1, #text, 3 do
    local a, b, c = text:byte(i, i + 2)
    local bits = a * 65536 + (b or 0) * 256 + (c or 0)
    for place = 3, 0, -1 do
      local digit = math.floor(bits / 64 ^ place) % 64
      local missing = (place == 1 and not b) or (place == 0 and not c)
      out[#out + 1] = missing and "=" or ALPHABET:sub(digit + 1, digit + 1)
    end
  end
  return table.concat(out)
end

local threads = 0

function setup(thread)
  thread:set("lane", threads)
  threads = threads + 1
end

local plain, encoded = {}, {}
local before_plain, before_encoded  -- the digits that stay: round and thread
local head, middle, tail, close
local count = 0

function init(args)
  for n = 0, 999 do
    plain[n] = string.format("%03d", n)
    encoded[n] = base64(plain[n])
  end
  local fixed = string.format("%03d%03d", 100 + tonumber(args[1] or "0"), lane)
  before_plain, before_encoded = fixed, base64(fixed)

  -- Each piece of JSON between two runs of digits is 12, 18 and 14 bytes long: multiples of three but for the last.
  local first, between, last = '{"user_id": ', ',"email_address":"', '@example.com"}'
  local data_start, data_between, data_end = base64(first), base64(between), base64(last)
  local length = #data_start + 20 + #data_between + 20 + #data_end

  local open = '{"message":{"data":"'
  local id = '","messageId":"'
  local again = '","message_id":"'
  local time = '","publishTime":"2026-01-01T00:00:00.000Z","publish_time":"2026-01-01T00:00:00.000Z"},'
    .. '"subscription":"projects/bench/subscriptions/users"}'
  local size = #open + length + #id + 15 + #again + 15 + #time
  local given = ""  -- those of --header; a request that the script makes has none of them by itself
  for name, value in pairs(wrk.headers) do
    if name ~= "Host" then
      given = given .. name .. ": " .. value .. "\r\n"
    end
  end
  head = string.format(
    "POST / HTTP/1.1\r\nHost: %s:%s\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s%s",
    wrk.host, wrk.port, given, size, open, data_start
  )
  middle, tail, close = data_between, data_end .. id, time
  between_ids = again
end

function request()
  count = count + 1
  local high, low = math.floor(count / 1000000) % 1000, count % 1000
  local mid = math.floor(count / 1000) % 1000
  local number = before_plain .. plain[high] .. plain[mid] .. plain[low]
  local digits = before_encoded .. encoded[high] .. encoded[mid] .. encoded[low]
  return head .. digits .. middle .. digits .. tail .. number .. between_ids .. number .. close
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%d,"microseconds":%d,"not_2xx":%d,"connect":%d,"read":%d,"write":%d,"timeout":%d,"p50":%d,"p99":%d}\n',
    summary.requests, summary.duration, errors.status, errors.connect, errors.read, errors.write, errors.timeout,
    latency:percentile(50), latency:percentile(99)
  ))
end
