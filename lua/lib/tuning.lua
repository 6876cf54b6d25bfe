-- tuning: the rules' times and bounds, all ms unless said otherwise. Sent by engine/settings.py in this order. The fast
-- path of heartbeat.lua reads `no_progress` as the last.
local tune = {}
do
  local names = {'lifetime', 'stale', 'interval', 'paused_keep', 'paused_silent', 'paused_end', 'sticky', 'reopen', 'guard',
    'left', 'unproven', 'burst', 'refill', 'keep', 'most', 'takeovers', 'takeover_window', 'no_progress'}
  local i = 0
  for value in string.gmatch(ARGV[4], '%S+') do
    i = i + 1
    tune[names[i]] = tonumber(value)
  end
end
-- An outage of our own: what was alive when it began lives one more lifetime after it ended.
local began, ended = tonumber(ARGV[5]), tonumber(ARGV[6])
local outbox_max = ARGV[3]
