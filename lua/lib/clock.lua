-- clock: `now` in ms. The server's TIME is the only clock; tests pass their own.
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000 + math.floor(t[2] / 1000)
end
