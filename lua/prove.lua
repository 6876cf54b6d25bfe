-- prove: shows that a node takes what decisions write, as it stands now.
-- FLAGS allow-oom
-- KEYS[1] proof  string: when it last did, for a minute; in one of the node's slots
-- RETURNS 1
redis.call('SET', KEYS[1], '1', 'PX', 60000)
return 1
