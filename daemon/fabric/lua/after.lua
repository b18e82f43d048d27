-- After commits: delete exactly the letters folded, publish what was said. One answer for a whole batch of runs.
-- KEYS: the inboxes.
-- ARGV: for each inbox, how many letters, then their ids; after those, (channel, message) for each run that said something.
local at = 1
for _, inbox in ipairs(KEYS) do
  local count = tonumber(ARGV[at])
  redis.call('XDEL', inbox, unpack(ARGV, at + 1, at + count))
  at = at + 1 + count
end
for i = at, #ARGV, 2 do
  redis.call('PUBLISH', ARGV[i], ARGV[i + 1])
end
