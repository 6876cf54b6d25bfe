-- series: writes one minute's slot into many rings. Runs on the log Redis. The same again changes nothing.
-- KEYS[1...] rings   strings of slots (engine/audience.py)
-- ARGV[1] offset     of the minute's slot, in bytes
-- ARGV[2] ttl        s
-- ARGV[3...] slots   one for each ring
-- RETURNS how many rings were written: all that are strings
local written = 0
for i, ring in ipairs(KEYS) do
  if type(redis.pcall('SETRANGE', ring, ARGV[1], ARGV[i + 2])) == 'number' then
    redis.call('EXPIRE', ring, ARGV[2])
    written = written + 1
  end
end
return written
