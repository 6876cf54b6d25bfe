-- remembered: who and what a session was when it was last admitted or refused. Reads only.
-- KEYS[1] leases     zset: session with its record -> when its lease expires (lib/record.lua)
-- ARGV[1] now            ms, or '' for the server's clock
-- ARGV[2] account
-- ARGV[3] tuning         see lib/tuning.lua
-- ARGV[4] session
-- RETURNS the record's ident line, or '' if the session is unknown

-- @include find

local text = find(KEYS[1], ARGV[4], '0', '-1')
return text and string.match(text, '([^\n]*)$') or ''
