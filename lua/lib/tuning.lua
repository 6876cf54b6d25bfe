-- tuning: the last outage of our own, bounds, and the rules' times; all ms unless said otherwise. Sent by engine/settings.py
-- in this order. The fast path of heartbeat.lua reads `no_progress` as the last.
--   began, ended  of the outage, 0 if none lately: what was alive when it began lives one more lifetime after it ended
--   outbox_max    lifecycle events the outbox may hold, about
local tune = {}
do
  local names = {'began', 'ended', 'outbox_max', 'lifetime', 'stale', 'interval', 'paused_keep', 'paused_silent', 'paused_end',
    'sticky', 'reopen', 'guard', 'left', 'straggle', 'unproven', 'burst', 'refill', 'keep', 'most', 'sessions', 'takeovers', 'takeover_window', 'no_progress'}
  local i = 0
  for value in string.gmatch(ARGV[3], '%S+') do
    i = i + 1
    tune[names[i]] = tonumber(value)
  end
end
local began, ended = tune.began, tune.ended
