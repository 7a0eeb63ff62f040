-- The common beginning of every script: the stream, its counters, the time and the budget of the call.
--
-- KEYS[1]  PREFIX .. 'meta'. PREFIX names one stream and holds the hash tag of its queue: all its keys share a slot
-- KEYS[2]  PREFIX .. 'none', which never exists: a Cluster does not run the script while the slot moves
-- ARGV[1]  the settings, as JSON    ARGV[2]  the time in ms; '' for the clock of Redis    ARGV[3]  the calling server
--
-- PREFIX meta      hash: schema, and counters: last (index), len, size, csize (bytes of claimed items), ended, served
--                  (number of dispatched items), number (of connections), rel (releases), epoch, heard (last tick, ms),
--                  ahead (of the clock of Redis, ms)
-- PREFIX timers    zset: what is due, and when (ms): 'h\0GROUP\0ID' a hold ends, 'l\0GROUP\0FILTER' a filter's retention
--                  period ends, 'm\0GROUP\0USER' a consumer that left is no longer listed
-- PREFIX servers   zset: server -> end of its lease at this stream (ms)
-- PREFIX readers   hash: server -> until when it has long polls here (ms)
--
-- An index is always written with 16 digits (it is below 2^53). A rank is text too: 10 digits, lower for a higher
-- priority, then the index. Both sort as bytes. Key names are stored data: they stay as they are when the code uses
-- another word.

local call = redis.call
local CONF = cjson.decode(ARGV[1])
local SERVER = ARGV[3]
local CLOCK = tonumber(ARGV[2])
if not CLOCK then
  local time = call('TIME')
  CLOCK = time[1] * 1000 + math.floor(time[2] / 1000)
end
local NOW = CLOCK  -- of the stream that is opened first

local TOP = 2147483647
local PREFIX = string.sub(KEYS[1], 1, -5)

-- left: how many entries this call may still examine; more: another call is needed
local work = {left = CONF.budget, more = false}

local function spend()
  work.left = work.left - 1
  if work.left >= 0 then
    return true
  end
  work.more = true
  return false
end

local function id_of(number)
  return string.format('%016d', number)
end

local function rank_of(priority, id)
  return string.format('%010d', TOP - priority) .. id
end

local function id_in(rank)
  return string.sub(rank, 11)
end

local function priority_in(rank)
  return TOP - tonumber(string.sub(rank, 1, 10))
end

-- Reads packed tags: pairs of length (four bytes) and text. In an entry's head they follow priority and size
local function tags_in(text, from)
  local tags, at = {}, from
  while at <= #text do
    local key, value
    key, value, at = struct.unpack('>I4c0I4c0', text, at)
    tags[key] = value
  end
  return tags
end

local function carries(tags, wanted)
  for key, value in pairs(wanted) do
    if tags[key] ~= value then
      return false
    end
  end
  return true
end

-- Calls `with` with parts of the list that are short enough for the arguments of one command
local function in_chunks(list, with)
  for from = 1, #list, 500 do
    local part = {}
    for place = from, math.min(from + 499, #list) do
      part[#part + 1] = list[place]
    end
    with(part)
  end
end

local streams = {}  -- streams that this call has opened, by PREFIX
local woken = {}  -- server -> PREFIX -> list of connections
local exhausted = {}  -- PREFIX, GROUP, ID, PREFIX ...: items for which the caller has to write a dead letter

local COUNTERS = {'last', 'len', 'size', 'csize', 'ended', 'served', 'number', 'rel', 'epoch', 'heard', 'ahead'}

-- Answers the stream, or nil when it does not exist. Its time never goes back when the clock of Redis is set back or
-- another Redis takes over: otherwise timers would be late by that much.
local function open_stream(prefix)
  if streams[prefix] then
    return streams[prefix]
  end
  local found = call('HMGET', prefix .. 'meta', 'schema', unpack(COUNTERS))
  if not found[1] then
    return nil
  end
  local S = {p = prefix, schema = found[1], changed = {}, groups = {}, heads = {}, fresh = {}}
  for place, name in ipairs(COUNTERS) do
    S[name] = tonumber(found[place + 1] or 0)
  end
  if prefix == PREFIX then
    NOW = math.max(CLOCK + S.ahead, S.heard)
  end
  streams[prefix] = S
  return S
end

local function set(S, name, value)
  S[name] = value
  S.changed[name] = true
end

-- Notes that the connection has to fetch items or look at its state
local function wake(S, number, server)
  woken[server] = woken[server] or {}
  woken[server][S.p] = woken[server][S.p] or {}
  woken[server][S.p][number] = true
end

-- Answers the number of puts and releases ever
local function arrivals(S)
  return S.last + S.rel
end

local function note_arrival(S, id, head)
  S.fresh[#S.fresh + 1] = {id, string.sub(head, 9)}
end

local function numbers_in(set_of)
  local list = {}
  for number in pairs(set_of) do
    list[#list + 1] = string.format('%d', number)
  end
  return list
end

-- Informs other servers of their connections to wake and, if they have long polls, of new items
local function publish()
  for server, by_stream in pairs(woken) do
    if server ~= SERVER then
      for prefix, numbers in pairs(by_stream) do
        call('PUBLISH', CONF.hint .. server, prefix .. '\0s\0' .. table.concat(numbers_in(numbers), ' '))
      end
    end
  end
  for _, S in pairs(streams) do
    if #S.fresh > 0 then
      local readers = call('HGETALL', S.p .. 'readers')
      for place = 1, #readers, 2 do
        if tonumber(readers[place + 1]) < NOW then
          call('HDEL', S.p .. 'readers', readers[place])
        elseif readers[place] ~= SERVER then
          for _, item in ipairs(S.fresh) do
            call('PUBLISH', CONF.hint .. readers[place],
              S.p .. '\0i\0' .. string.format('%d', arrivals(S)) .. '\0' .. item[1] .. '\0' .. item[2])
          end
        end
      end
    end
  end
end
