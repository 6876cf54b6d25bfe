-- announce: an API process says that it is there, and learns of outages of our own: a process that vanished,
-- all of them away, a node that could not be asked, or a jump of the server's clock.
-- FLAGS allow-oom
-- KEYS[1] processes  zset: process -> last announcement
-- KEYS[2] outage     hash: began, ended (ms), last (the newest announcement ever)
-- ARGV[1] now            ms, or '' for the server's clock
-- ARGV[2] process        '' only reads
-- ARGV[3] elapsed        ms since this process's last announcement, by its own clock; '' for the first
-- ARGV[4] leaving        1: signs off
-- ARGV[5] gone_after     ms of silence after which a process has vanished
-- ARGV[6] lifetime       ms: outages closer together than this are one
-- ARGV[7] away           ms for which this process could not ask some node; 0 if all answer
-- RETURNS {began, ended, processes, now}: the last outage (0 if none ever), live processes

-- @include clock
local process, gone_after = ARGV[2], tonumber(ARGV[5])
local last = tonumber(redis.call('HGET', KEYS[2], 'last')) or 0
local began = tonumber(redis.call('HGET', KEYS[2], 'began')) or 0
local ended = tonumber(redis.call('HGET', KEYS[2], 'ended')) or 0
local mine = tonumber(redis.call('ZSCORE', KEYS[1], process))
now = math.max(now, last)

local live, from = 0, nil
local gone = {}
local all = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
  local at = tonumber(all[i + 1])
  if at + gone_after < now then
    gone[#gone + 1] = all[i]
    from = math.min(from or at, at)
  else
    live = live + 1
  end
end
if process == '' then return {began, ended, live, now} end

if live == 0 and last > 0 then from = math.min(from or last, last) end
local elapsed = tonumber(ARGV[3])
if mine and elapsed and now - mine - elapsed > gone_after then from = math.min(from or mine, mine) end
if last > 0 and tonumber(ARGV[7]) > gone_after then from = math.min(from or now, now - ARGV[7]) end
if from then
  if ended == 0 or from > ended + ARGV[6] then began = from end
  ended = now
  redis.call('HSET', KEYS[2], 'began', string.format('%d', began), 'ended', string.format('%d', ended))
end
for _, name in ipairs(gone) do redis.call('ZREM', KEYS[1], name) end
if ARGV[4] == '1' then
  redis.call('ZREM', KEYS[1], process)
else
  redis.call('ZADD', KEYS[1], string.format('%d', now), process)
end
redis.call('HSET', KEYS[2], 'last', string.format('%d', now))
return {began, ended, redis.call('ZCARD', KEYS[1]), now}
