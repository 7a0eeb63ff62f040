-- flags: no-writes; after: context entries groups consumers
-- Answers the state of the stream: {items, bytes, first, last, highest index ever, ended, epoch}; the consumers; the
-- groups; and the filters of the groups as {group, tags, items that the group has not committed, ms until it ends (-1:
-- connected)}.

local S = open_stream(PREFIX)
if not S then
  return {'gone'}
end
local all = S.p .. 'all'
local consumer_lines, group_lines, held_lines = {}, {}, {}
for _, G in ipairs(groups.all(S)) do
  local held_count = {}
  local held = call('HGETALL', G.g .. 'held')
  for place = 1, #held, 2 do
    local user = groups.held_for(held[place + 1])
    held_count[user] = (held_count[user] or 0) + 1
  end
  local listed = consumers.all(G)
  for _, m in ipairs(listed) do
    local s = consumers.sessions(G)[m.session]
    local status = 'Running'
    if not s then
      status = (not m.left_pending and 'Complete') or (held_count[m.user] and 'Leaving') or 'Exit'
    end
    consumer_lines[#consumer_lines + 1] = {
      G.name, m.user, s and s.index or m.index, s and s.out or held_count[m.user] or 0, status, math.max(0, NOW - m.active),
      s and s.window or 0, s and math.max(0, s.window - s.out) or 0, m.auto and 1 or 0, m.filter,
    }
  end
  local uncommitted = S.len - call('ZCARD', G.g .. 'done')
  for filter, left in pairs(uncommitted > 0 and G.filters or {}) do
    local left_ms = left < 0 and -1 or math.max(0, left + CONF.retention - NOW)
    held_lines[#held_lines + 1] = {G.name, filter, uncommitted, left_ms}
  end
  if G.connected > 0 or #listed > 0 then
    local pending = call('HKEYS', G.g .. 'pend')
    local first
    for _, id in ipairs(pending) do
      first = (first and first < id) and first or id
    end
    group_lines[#group_lines + 1] = {G.name, first or '0', #pending, G.highest + 1, G.connected}
  end
end
return {'ok', {
  {call('ZCARD', all), S.size - S.csize, call('ZRANGE', all, 0, 0)[1] or '0', call('ZREVRANGE', all, 0, 0)[1] or '0',
    S.last, S.ended, S.epoch},
  consumer_lines, group_lines, held_lines,
}}
