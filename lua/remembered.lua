-- remembered: who and what a session was when it was last admitted or refused. Reads only.
-- KEYS[1] sessions   hash: session -> record (lib/record.lua)
-- ARGV[1] now            ms, or '' for the server's clock
-- ARGV[2] account
-- ARGV[3] outbox_max     lifecycle events the outbox may hold, about
-- ARGV[4] tuning         see lib/tuning.lua
-- ARGV[5] outage_began   ms, 0 if none lately
-- ARGV[6] outage_ended   ms
-- ARGV[7] session
-- RETURNS the record's ident line, or '' if the session is unknown

local text = redis.call('HGET', KEYS[1], ARGV[7])
return text and string.match(text, '([^\n]*)$') or ''
